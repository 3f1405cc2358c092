"""The four ways in which parts over the sites of a 2×3 tensor meet, and what a reduction leaves of them."""

import pytest
from helpers.labels import Bench

from lightning_rebasin.symmetry.permutations.labels import Part
from lightning_rebasin.symmetry.permutations.parts import (
    combine_parts,
    reduce_parts,
    relate_blocks,
)

SIZES = (2, 3)


def written(parts):
    return [(part.sites, part.elements.ids.tolist()) for part in parts]


def test_parts_over_the_same_sites_are_one():
    bench = Bench()
    one, other = bench.store.fresh((2,)), bench.store.fresh((2,))
    remaining, inside = combine_parts(
        bench.store, [Part((0,), one), Part((0,), other)], set(), SIZES
    )
    assert bench.tables() == [("equal", [0, 1], [2, 3])]
    assert written(remaining) == [((0,), [0, 1])] and inside == []


def test_a_pinned_site_fixes_its_elements_and_the_coordinate_of_others():
    bench = Bench()
    rows, all_of_them = bench.store.fresh((2,)), bench.store.fresh((2, 3))
    remaining, _ = combine_parts(
        bench.store, [Part((0,), rows), Part((0, 1), all_of_them)], {0}, SIZES
    )
    assert bench.tables() == [
        ("position", [0, 1], [0, 1]),
        ("position", [2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 1, 1]),
    ]
    assert (
        bench.store.tables[0].reason
        == "it meets a dimension of size 2 whose order is fixed"
    )
    assert [part.sites for part in remaining] == [(0, 1)]


def test_a_part_within_another_holds_its_blocks():
    bench = Bench()
    rows, all_of_them = bench.store.fresh((2,)), bench.store.fresh((2, 3))
    remaining, inside = combine_parts(
        bench.store,
        [Part((0,), rows), Part((0, 1), all_of_them)],
        set(),
        SIZES,
    )
    assert bench.tables() == [
        ("relation", [2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 1, 1])
    ]
    assert [part.sites for part in remaining] == [(0, 1)] and written(
        inside
    ) == [((0,), [0, 1])]


def test_parts_that_overlap_agree_about_what_they_share():
    bench = Bench()
    left, right = bench.store.fresh((2, 3)), bench.store.fresh((3, 2))
    remaining, inside = combine_parts(
        bench.store,
        [Part((0, 1), left), Part((1, 2), right)],
        set(),
        (2, 3, 2),
    )
    assert bench.tables("equal") == [("equal", [12, 13, 14], [15, 16, 17])]
    assert bench.tables("relation") == [
        ("relation", [0, 1, 2, 3, 4, 5], [12, 13, 14, 12, 13, 14]),
        ("relation", [6, 7, 8, 9, 10, 11], [15, 15, 16, 16, 17, 17]),
    ]
    assert [part.sites for part in remaining] == [
        (0, 1),
        (1, 2),
    ] and inside == []


def test_reduced_columns_are_marked_and_blocks_remain():
    bench = Bench()
    columns, all_of_them = bench.store.fresh((3,)), bench.store.fresh((2, 3))
    assert reduce_parts(bench.store, [Part((1,), columns)], {1}) == []
    assert bench.tables() == [("mark", [0, 1, 2], [0, 0, 0])]
    left = reduce_parts(bench.store, [Part((0, 1), all_of_them)], {1})
    assert written(left) == [((0,), [9, 10])]
    assert bench.tables("relation") == [
        ("relation", [3, 4, 5, 6, 7, 8], [9, 9, 9, 10, 10, 10])
    ]


def test_blocks_of_two_parts_that_are_left_alone_together_are_one():
    bench = Bench()
    one, other = bench.store.fresh((2, 3)), bench.store.fresh((2, 4))
    left = reduce_parts(
        bench.store, [Part((0, 1), one), Part((0, 2), other)], {1, 2}
    )
    assert len(left) == 1 and len(bench.tables("equal")) == 1


@pytest.mark.parametrize(
    ("reduced", "kinds"),
    [({0, 1}, ["mark"]), ({1}, ["relation", "relation"]), (set(), [])],
)
def test_a_normalisation_commits_the_blocks(reduced, kinds):
    bench = Bench()
    relate_blocks(
        bench.store, [Part((0, 1), bench.store.fresh((2, 3)))], reduced
    )
    assert [kind for kind, _, _ in bench.tables()] == kinds
    # The second relation is the commitment: it is no mere definition.
    assert not kinds or not bench.store.tables[-1].defines
