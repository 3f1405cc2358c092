"""Views: the same positions in another shape, turned, broadcast or repeated."""

import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of

from lightning_rebasin.symmetry.permutations.rules.views import order_of


def test_a_reshape_keeps_its_sites_and_a_view_of_other_numbers_is_unknown():
    bench = Bench()
    assert (
        bench.run("view", (6,), self=bench.units(2, 3)).dims == ((0, 1),)
        and bench.tables() == []
    )
    assert (
        bench.run("view", (2, 6), self=bench.units(2, 3)).pinned == {0, 1}
        and len(bench.pins) == 5
    )


@pytest.mark.parametrize(
    ("op", "given", "shape", "first"),
    [
        ("t", {}, (3, 2), [2, 3, 4]),
        ("transpose", {"dim0": -1, "dim1": 0}, (3, 2), [2, 3, 4]),
        ("permute", {"dims": [-2, 1]}, (2, 3), [0, 1]),
    ],
)
def test_turned_dimensions(op, given, shape, first):
    bench = Bench()
    assert (
        parts_of(bench.run(op, shape, self=bench.units(2, 3), **given))[0,]
        == first
    )


def test_a_number_cannot_be_turned():
    assert (
        order_of("aten.transpose", {"dim0": 0, "dim1": -1}, 0)
        == []
        == order_of("aten.permute", {"dims": []}, 0)
    )


@pytest.mark.parametrize(
    ("dim", "shape"),
    [
        ([], (1, 2, 1, 3)),
        (None, (2, 3)),
        ([0, 1], (2, 1, 3)),
        (-2, (1, 2, 3)),
        ([0, -2], (2, 3)),
    ],
)
def test_only_the_dimensions_given_are_squeezed(dim, shape):
    bench = Bench()
    assert bench.run(
        "squeeze", shape, self=bench.units(1, 2, 1, 3), dim=dim
    ).sizes == (2, 3)


def test_unsqueezed_and_expanded_positions_are_copies():
    bench = Bench()
    assert Bench().run(
        "unsqueeze", (2, 1, 3), self=Bench().units(2, 3), dim=-2
    ).dims == ((0,), (), (1,))
    grown = bench.run("unsqueeze", (2, 3, 1), self=bench.units(2, 3), dim=-1)
    wide = bench.run("expand", (5, 2, 3, 4), self=grown)
    assert (
        parts_of(wide) == {(1,): [0, 1], (2,): [2, 3, 4]}
        and wide.pinned == frozenset()
    )


def test_a_repeated_tensor_has_a_free_site_before_every_old_one():
    bench = Bench()
    result = bench.run(
        "repeat", (5, 2, 12), self=bench.units(2, 3), repeats=[5, 1, 4]
    )
    assert result.dims == ((0,), (1,), (2, 3)) and result.sizes == (5, 2, 4, 3)
    assert parts_of(result) == {(1,): [0, 1], (3,): [2, 3, 4]}


@pytest.mark.parametrize(
    ("stride", "offset", "known"),
    [
        ([3, 1], 0, True),
        ([1, 2], 0, False),
        ([3, 1], 1, False),
        ([3, 1], None, True),
    ],
)
def test_strides_are_understood_where_they_say_nothing_new(
    stride, offset, known
):
    bench = Bench()
    result = bench.run(
        "as_strided",
        (2, 3),
        self=bench.units(2, 3),
        size=[2, 3],
        stride=stride,
        storage_offset=offset,
    )
    assert bool(result.parts) is known and bool(bench.pins) is not known


def test_the_stride_of_a_single_position_says_nothing():
    bench = Bench()
    given = {"size": [2, 1, 3], "stride": [3, 99, 1], "storage_offset": 0}
    assert (
        bench.run(
            "as_strided", (2, 1, 3), self=bench.units(2, 1, 3), **given
        ).parts
        and not bench.pins
    )


def test_real_and_imaginary_part_are_positions():
    bench = Bench()
    real = bench.run("view_as_real", (3, 2), self=bench.units(3))
    assert parts_of(real) == {(0,): [0, 1, 2]} and real.pinned == {1}
    assert parts_of(
        bench.run("view_as_complex", (3,), self=bench.units(3, 2))
    ) == {(0,): [3, 4, 5]}
    assert bench.pins == {6, 7}


@pytest.mark.parametrize(
    ("operation", "width", "groups"),
    [
        (lambda h: h.T.reshape(8, -1).T, 8, [(8, 1)]),
        # the copies of each unit may also change places
        (lambda h: h.repeat(1, 2), 16, [(8, 1), (2, 8)]),
        (lambda h: h.repeat_interleave(2, 1), 16, [(8, 1), (2, 8)]),
        (
            lambda h: h[:, None].expand(-1, 3, -1).flatten(1),
            24,
            [(8, 1), (3, 8)],
        ),
        (lambda h: h.view(-1, 2, 4).mT.flatten(1), 8, [(8, 1)]),
        (
            lambda h: torch.view_as_real(torch.complex(h, -h)).flatten(1),
            16,
            [(8, 1)],
        ),
    ],
)
def test_viewed_units(operation, width, groups):
    spec = exact(around(operation, width), noise(3, 5))
    assert spec.log10_symmetries == pytest.approx(log10(*groups))
