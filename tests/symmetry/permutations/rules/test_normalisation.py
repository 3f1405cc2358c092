"""Normalisations: units are used as a set and stay, blocks of units stay together."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of
from torch import nn

from lightning_rebasin.symmetry.permutations.labels import plain


def test_softmax_keeps_the_label_and_marks_it():
    bench = Bench()
    result = bench.run("_softmax", (2, 3), self=bench.units(2, 3), dim=-1)
    assert parts_of(result) == {
        (0,): [0, 1],
        (1,): [2, 3, 4],
    } and bench.tables() == [("mark", [2, 3, 4], [0, 0, 0])]


def test_scale_and_shift_of_a_layer_norm_meet_the_units():
    bench = Bench()
    given = {
        "input": bench.units(2, 3),
        "weight": bench.units(3),
        "bias": bench.units(3),
        "normalized_shape": [3],
    }
    result, mean, _ = bench.run(
        "native_layer_norm", (2, 3), (2, 1), (2, 1), **given
    )
    assert bench.tables("equal") == [
        ("equal", [2, 3, 4], [5, 6, 7]),
        ("equal", [2, 3, 4], [8, 9, 10]),
    ]
    assert parts_of(result)[1,] == [2, 3, 4] and parts_of(mean) == {
        (0,): [0, 1]
    }


def test_a_group_norm_cuts_channels_into_blocks():
    bench = Bench()
    (result, *_) = bench.run(
        "native_group_norm",
        (1, 6, 4),
        (1, 2),
        (1, 2),
        input=bench.units(1, 6, 4),
        group=2,
    )
    # the new elements 10 and 11 are the blocks of the channels 0 to 5
    assert (
        "relation",
        [0, 1, 2, 3, 4, 5],
        [10, 10, 10, 11, 11, 11],
    ) in bench.tables()
    assert sorted(parts_of(result)) == [(0, 1), (2,)]


@pytest.mark.parametrize("training", [False, True])
def test_batch_statistics_are_a_reduction_and_stored_ones_are_not(training):
    bench = Bench()
    statistics = {
        "running_mean": bench.units(3),
        "running_var": bench.units(3),
    }
    bench.run(
        "native_batch_norm",
        (2, 3),
        input=bench.units(2, 3),
        training=training,
        **statistics,
    )
    assert (
        len(bench.tables("equal")) == 2
        and len(bench.tables("mark")) == training
    )


def test_weight_norm_keeps_rows_and_gives_their_norms():
    bench = Bench()
    result, norms = bench.run(
        "_weight_norm_interface",
        (2, 3),
        (2, 1),
        v=bench.units(2, 3),
        g=bench.units(2, 1),
        dim=0,
    )
    assert parts_of(result) == {(0,): [0, 1], (1,): [2, 3, 4]} and parts_of(
        norms
    ) == {(0,): [0, 1]}
    assert bench.tables("equal") == [("equal", [0, 1], [5, 6])]
    assert bench.run(
        "_weight_norm", (2, 3), v=bench.units(2, 3), g=plain((2, 1)), dim=0
    ).shape == (2, 3)


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (
            lambda h: h.view(-1, 2, 4).softmax(-1).reshape(-1, 8),
            [(2, 1), (4, 2)],
        ),
        (lambda h: F.normalize(h, dim=1) + h.log_softmax(1), [(8, 1)]),
        (lambda h: F.layer_norm(h, (8,)), [(8, 1)]),
        (lambda h: F.rms_norm(h, (8,)), [(8, 1)]),
        (
            lambda h: F.batch_norm(
                h,
                torch.zeros(8, dtype=h.dtype),
                torch.arange(1, 9, dtype=h.dtype),
            ),
            [],
        ),
    ],
)
def test_normalised_units(operation, groups):
    spec = exact(around(operation), noise(3, 5))
    assert spec.log10_symmetries == pytest.approx(log10(*groups))


def test_group_norm_nests_and_follows():
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 3)
    )
    assert exact(net, noise(2, 2, 7, 7)).log10_symmetries == pytest.approx(
        log10((4, 1), (2, 4))
    )
