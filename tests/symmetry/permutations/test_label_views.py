"""Reshapes: what can be told by splitting sites costs nothing; fusing sites loses no constraint."""

import numpy as np
import pytest
from helpers.labels import Bench, parts_of

from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.label_views import (
    fuse_sites,
    single_site,
    view,
)
from lightning_rebasin.symmetry.permutations.labels import Label, Part


def test_flattening_and_back_is_the_same_label():
    bench = Bench()
    label = bench.units(2, 3)
    flat = view(label, (6,), bench.store)
    assert flat.dims == ((0, 1),) and flat.parts == label.parts
    again = view(flat, (2, 1, 3), bench.store)
    assert (
        again.dims == ((0,), (), (1,))
        and again.parts == label.parts
        and bench.tables() == []
    )


def test_heads_split_the_units():
    bench = Bench()
    split = view(bench.units(2, 6), (2, 3, 2), bench.store)
    assert split.dims == ((0,), (1,), (2,)) and bench.tables() == []
    assert parts_of(split) == {(0,): [0, 1], (1, 2): [[2, 3], [4, 5], [6, 7]]}


def test_sizes_without_common_factors_are_fused_below_the_old_elements():
    bench = Bench()
    turned = view(bench.units(2, 3), (3, 2), bench.store)
    assert turned.shape == (3, 2) and parts_of(turned) == {
        (0, 1): [[5, 6], [7, 8], [9, 10]]
    }
    new = [5, 6, 7, 8, 9, 10]
    assert bench.tables() == [
        ("relation", new, [0, 0, 0, 1, 1, 1]),
        ("relation", new, [2, 3, 4, 2, 3, 4]),
    ]
    # what nobody uses constrains nothing
    assert all(table.defines for table in bench.store.tables)


def test_only_the_sites_that_do_not_fit_are_fused():
    bench = Bench()
    label = bench.units(5, 2, 3)
    assert parts_of(view(label, (5, 3, 2), bench.store))[0,] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("joint", [False, True])
def test_fused_positions_stay_fixed_element_by_element(joint):
    """Sites (step, unit), the steps pinned; the elements lie over both sites, or over the units alone."""
    store = Constraints()
    elements = store.fresh((3,) if joint else (2, 3))
    part = Part((1,) if joint else (0, 1), elements)
    fused = fuse_sites(
        Label(((0, 1),), (2, 3), (part,), frozenset({0})), 0, 2, store
    )
    assert (
        fused.sizes == (6,)
        and not fused.pinned
        and [p.sites for p in fused.parts] == [(0,)]
    )
    ids = fused.parts[0].elements.ids
    (table,) = [t for t in store.tables if t.kind == "position"]
    assert (
        np.array_equal(table.left, ids)
        and table.right.tolist() == [0, 0, 0, 1, 1, 1]
        and table.defines
    )


def test_a_fused_site_without_elements_stays_pinned():
    fused = fuse_sites(
        Label(((0, 1),), (2, 3), (), frozenset({0})), 0, 2, Constraints()
    )
    assert fused.pinned == {0}


def test_fusing_moves_the_sites_behind():
    store = Constraints()
    label = Label(
        ((0,), (1, 2), (3,)),
        (5, 2, 3, 7),
        (Part((3,), store.fresh((7,))),),
        frozenset({0, 3}),
    )
    fused = single_site(label, 1, store)
    assert (
        fused.dims == ((0,), (1,), (2,))
        and fused.sizes == (5, 6, 7)
        and fused.pinned == {0, 2}
    )
    assert [part.sites for part in fused.parts] == [(2,)]
    assert single_site(label, 0, store) is label
