"""Concatenation: new elements that are copies of the pieces', made only where something but a piece is used."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of
from torch import nn

from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    constant,
    fixed,
)
from lightning_rebasin.symmetry.permutations.rules.base import LayoutNotCovered
from lightning_rebasin.symmetry.permutations.rules.concatenation import (
    concatenate,
)


def test_the_worked_example_of_two_pieces_side_by_side():
    bench = Bench()
    joined = concatenate(bench.ctx, [bench.units(2, 3), bench.units(2, 2)], 1)
    assert joined.shape == (2, 5) and parts_of(joined) == {
        (0,): [0, 1],
        (1,): [9, 10, 11, 12, 13],
    }
    assert bench.tables() == [
        ("equal", [0, 1], [5, 6]),
        ("relation", [9, 10, 11], [2, 3, 4]),
        ("mark", [9, 10, 11], [0, 0, 0]),
        ("relation", [12, 13], [7, 8]),
        ("mark", [12, 13], [0, 0]),
    ]
    assert all(table.defines for table in bench.store.tables[1:])


def test_positions_stay_positions():
    bench = Bench()
    joined = concatenate(bench.ctx, [fixed((2, 3)), fixed((2, 2))], 1)
    assert (
        joined.pinned == {0, 1} and joined.parts == () and bench.tables() == []
    )


def test_a_constant_beside_positions_is_free_within_itself():
    bench = Bench()
    joined = concatenate(bench.ctx, [constant((2,)), fixed((3,))], 0)
    assert parts_of(joined) == {(0,): [0, 1, 2, 3, 4]} and not joined.pinned
    assert bench.tables() == [
        ("mark", [0, 1], [0, 0]),
        ("position", [2, 3, 4], [0, 1, 2]),
    ]


def test_elements_that_depend_on_another_axis_take_it_along():
    bench = Bench()
    piece = Label(
        ((0,), (1,)), (2, 3), (Part((0, 1), bench.store.fresh((2, 3))),)
    )
    joined = concatenate(bench.ctx, [piece, constant((2, 2))], 1)
    assert parts_of(joined) == {
        (0, 1): [[6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]
    }
    assert (
        "relation",
        [6, 7, 8, 11, 12, 13],
        [0, 1, 2, 3, 4, 5],
    ) in bench.tables()


def test_sites_that_fit_already_are_not_fused():
    """The first dimension has two sites, (head, unit), in both pieces; fusing them would invent elements."""
    bench = Bench()
    pieces = [
        Label(
            ((0, 1), (2,)), (2, 3, n), (Part((2,), bench.store.fresh((n,))),)
        )
        for n in (4, 5)
    ]
    joined = concatenate(bench.ctx, pieces, 1)
    assert joined.dims == ((0, 1), (2,)) and len(bench.tables("relation")) == 2


def test_empty_pieces_are_left_out():
    bench = Bench()
    tensors = [bench.tensor(fixed((0,))), bench.tensor(bench.units(2, 3))]
    assert bench.run("cat", (2, 3), tensors=tensors, dim=-1).shape == (2, 3)


def test_padding_on_both_sides_is_one_piece():
    bench = Bench()
    padded = bench.run(
        "constant_pad_nd", (2, 6), self=bench.units(2, 3), pad=[1, 2]
    )
    # 5, 6, 7 are the padding, 8, 9, 10 the copies of the columns
    assert (
        parts_of(padded)[1,] == [5, 8, 9, 10, 6, 7]
        and ("mark", [5, 6, 7], [0, 0, 0]) in bench.tables()
    )


def test_negative_padding_cuts_and_pairs_start_with_the_last_dimension():
    bench = Bench()
    cut = bench.run(
        "constant_pad_nd", (1, 2), self=bench.units(2, 3), pad=[-1, 0, 0, -1]
    )
    assert parts_of(cut) == {(0,): [3, 4]} and [
        e.ids.tolist() for e in cut.pending
    ] == [[0]]


def test_padding_of_nothing_is_not_covered():
    bench = Bench()
    with pytest.raises(LayoutNotCovered):
        bench.run(
            "constant_pad_nd", (2, 2), self=bench.units(2, 0), pad=[1, 1]
        )


def test_padding_of_positions_is_positions():
    bench = Bench()
    assert bench.run(
        "constant_pad_nd", (5,), self=fixed((3,)), pad=[1, 1]
    ).pinned == {0}


@pytest.mark.parametrize(
    ("operation", "width", "groups"),
    [
        (lambda h: F.pad(h[:, 2:6], (2, 2)), 8, [(4, 1)]),
        (lambda h: torch.cat([h, -h], 1), 16, [(8, 1)]),
        (lambda h: torch.cat([h, torch.zeros_like(h)], 1), 16, [(8, 1)]),
        (
            lambda h: torch.cat(
                [h.view(-1, 2, 4), h.view(-1, 2, 4).neg()], 1
            ).flatten(1),
            16,
            [(8, 1)],
        ),
    ],
)
def test_concatenated_units(operation, width, groups):
    spec = exact(around(operation, width), noise(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6


def test_flattened_image_beside_other_features():
    """Regression: flattening ordered pixels into an axis with channels pinned the channels as soon as it was joined."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.a, self.h, self.o = (
                nn.Conv2d(3, 6, 3),
                nn.Linear(4, 5),
                nn.Linear(221, 7),
                nn.Linear(7, 2),
            )

        def forward(self, image, table):
            z = torch.cat(
                [self.c(image).relu().flatten(1), self.a(table).relu()], 1
            )
            return self.o(self.h(z).relu())

    spec = exact(Both(), noise(2, 3, 8, 8), noise(2, 4))
    assert spec.log10_symmetries == pytest.approx(
        log10((6, 1), (5, 1), (7, 1))
    )


def test_flattened_steps_joined_and_cut_again():
    """Position of the step stays, units of the steps move together, what is cut out is ordered."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.o = nn.Linear(3, 4), nn.Linear(14, 2)

        def forward(self, z):
            flat = F.pad(self.i(z).tanh().flatten(1), (1, 1))
            return self.o(flat[:, :14])

    spec = exact(Windows(), noise(2, 4, 3))
    # of the last step only the first unit is read, which sets it apart
    assert spec.log10_symmetries == pytest.approx(log10((3, 1)))


def test_rows_of_a_relative_table_that_no_output_reads():
    """Relative to absolute positions by padding and reshaping: rows outside of the window's reach are free."""

    class Relative(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.rel = (
                nn.Linear(5, 3),
                nn.Parameter(torch.zeros(11, 3)),
            )

        def forward(self, x):
            y = F.pad(self.q(x) @ self.rel.T, [0, 1]).flatten(1)
            return F.pad(y, [0, 7]).reshape(-1, 5, 11)[:, :4, 5:]

    spec = exact(Relative(), noise(2, 4, 5))
    # 4 queries see 6 neighbours at relative positions −3 … 5: 9 rows of 11
    assert spec.log10_symmetries == pytest.approx(log10((3, 1), (2, 1)))
