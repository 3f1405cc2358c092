"""loss_profile against formulas, measure_barrier and trained networks."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import val_loader
from helpers.pairs import two_classifiers
from helpers.untouched import untouched
from torch import nn

from lightning_rebasin import loss_profile, measure_barrier
from lightning_rebasin.errors import ConfigurationError, StateDictError
from lightning_rebasin.landscape.directions import random_direction

BATCH = [torch.ones(1, 1)]


def scalar():
    """``L(w) = w⁴ − 2w² + w/2``: two valleys."""

    def loss(net, _):
        w = net.weight[0, 0]
        return w**4 - 2 * w**2 + w / 2

    return nn.Linear(1, 1, bias=False).double(), loss


def at(w):
    return {"weight": torch.tensor([[w]], dtype=torch.float64)}


def formula(w):
    return w**4 - 2 * w**2 + w / 2


def test_interpolation_is_the_formula_with_its_bump():
    module, loss = scalar()
    profile = loss_profile(
        module, at(1.5), BATCH, to=at(-1.5), points=61, loss=loss
    )
    assert len(profile.alphas) == 61
    ws = [1.5 - 3.0 * k / 60 for k in range(61)]
    assert profile.values["loss"] == pytest.approx(
        [formula(w) for w in ws], rel=1e-9, abs=1e-12
    )
    # From the valley near w = 0.93 over the ridge near 0.13, then the last wall down from −1.06 to −1.5.
    first, last = profile.bumps("loss")
    rise = max(formula(w) for w in ws[20:40]) - min(
        formula(w) for w in ws[:20]
    )
    assert first.height == pytest.approx(rise, rel=1e-9)
    assert last.peak == 1.0
    assert last.height == pytest.approx(
        formula(-1.5) - formula(-1.05), rel=1e-9
    )


def test_fifty_places_by_default_and_the_ends_are_exact():
    module, a, b = two_classifiers()
    profile = loss_profile(module, a, val_loader(), to=b)
    assert len(profile.alphas) == 50
    assert (profile.alphas[0], profile.alphas[-1]) == (0.0, 1.0)
    curve = measure_barrier(module, a, b, val_loader(), points=2)
    assert set(profile.values) == set(curve.values)
    for name, row in curve.values.items():
        assert profile.values[name][0] == row[0]
        assert profile.values[name][-1] == row[-1]
    assert profile.higher_is_better == curve.higher_is_better
    assert profile.samples == 50


def test_a_direction_is_used_as_it_is():
    module, loss = scalar()
    profile = loss_profile(
        module,
        at(0.5),
        BATCH,
        direction=at(2.0),
        points=[1.5, -1, 0],
        loss=loss,
    )
    assert profile.alphas == (-1.0, 0.0, 1.5)
    assert profile.values["loss"] == pytest.approx(
        [formula(w) for w in (-1.5, 0.5, 3.5)]
    )
    far = loss_profile(
        module,
        at(0.0),
        BATCH,
        direction=at(1.0),
        points=3,
        reach=(0, 2),
        loss=loss,
    )
    assert far.alphas == (0.0, 1.0, 2.0)


def test_without_a_direction_it_is_random_and_filter_normalised():
    module, a, _ = two_classifiers()
    profile = loss_profile(module, a, val_loader(), points=3, seed=4)
    given = loss_profile(
        module,
        a,
        val_loader(),
        points=3,
        direction=random_direction(module, a, 4),
    )
    other = loss_profile(module, a, val_loader(), points=3, seed=5)
    assert profile.values == given.values
    assert profile.alphas == (-1.0, 0.0, 1.0)
    assert profile.values["val_loss"][2] != other.values["val_loss"][2]
    assert profile.values["val_loss"][1] == other.values["val_loss"][1]


def test_the_module_is_left_alone():
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True, noise=True)
    train = list(val_loader(seed=3))
    with untouched(module):
        loss_profile(module, a, val_loader(), to=b, points=3, batch_norm=train)
        loss_profile(module, a, val_loader(), points=3)


def test_wrong_input_is_named():
    module, loss = scalar()
    with pytest.raises(ConfigurationError, match="not both"):
        loss_profile(
            module, at(0), BATCH, to=at(1), direction=at(1), loss=loss
        )
    for options in ({"points": 1}, {"points": [0.5]}, {"reach": (1, 0)}):
        with pytest.raises(ConfigurationError, match="two places"):
            loss_profile(module, at(0), BATCH, to=at(1), loss=loss, **options)
    with pytest.raises(StateDictError, match="set of weights 2"):
        loss_profile(module, at(0), BATCH, to={}, loss=loss)
