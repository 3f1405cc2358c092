"""Operands agree about the sites of every letter: by splitting where factors fit, by fusing where they do not."""

from helpers.labels import Bench, parts_of

from lightning_rebasin.symmetry.permutations.align import Operand, align
from lightning_rebasin.symmetry.permutations.label_views import view
from lightning_rebasin.symmetry.permutations.labels import plain


def aligned(bench, *operands):
    found = align(
        bench.store,
        [Operand(label, tuple(letters)) for label, letters in operands],
        ["a", "b"],
    )
    return [operand.label for operand in found.operands], found.factors


def test_a_single_site_is_split_like_two():
    bench = Bench()
    flat = view(bench.units(2, 3), (6,), bench.store)
    (one, other), factors = aligned(bench, (flat, "a"), (bench.units(6), "a"))
    assert factors == {"a": (2, 3), "b": ()} and one is flat
    assert (
        parts_of(other) == {(0, 1): [[5, 6, 7], [8, 9, 10]]}
        and bench.tables() == []
    )


def test_both_are_split_where_neither_is_finer():
    bench = Bench()
    left = view(bench.units(4, 3), (12,), bench.store)
    right = view(bench.units(2, 6), (12,), bench.store)
    (one, other), factors = aligned(bench, (left, "a"), (right, "a"))
    assert (
        factors["a"] == (2, 2, 3)
        and one.sizes == other.sizes == (2, 2, 3)
        and bench.tables() == []
    )


def test_sites_that_do_not_fit_are_fused_in_both():
    bench = Bench()
    left = view(bench.units(2, 3), (6,), bench.store)
    right = view(bench.units(3, 2), (6,), bench.store)
    (one, other), factors = aligned(bench, (left, "a"), (right, "a"))
    assert factors["a"] == (6,) and one.sizes == other.sizes == (6,)
    assert (
        parts_of(one) == {(0,): [10, 11, 12, 13, 14, 15]}
        and len(bench.tables("relation")) == 4
    )


def test_what_broadcasts_takes_any_layout():
    bench = Bench()
    (one, other), factors = aligned(
        bench, (bench.units(2, 3), "ab"), (plain((1, 3)), "ab")
    )
    assert (
        factors == {"a": (2,), "b": (3,)}
        and one.sizes == (2, 3)
        and other.sizes == (3,)
    )


def test_letters_give_the_sites_of_an_operand_common_numbers():
    operand = Operand(plain((2, 1, 3)), ("a", "b", "c"))
    assert operand.numbers_in({"a": (4,), "b": (9,), "c": (0,)}) == {
        0: 4,
        1: 0,
    }
    assert operand.sites_of("z") == () and operand.factors_of("c") == (3,)
