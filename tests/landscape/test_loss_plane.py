"""loss_plane against formulas and measure_barrier."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.classifier import val_loader
from helpers.models import BatchNormCNN
from helpers.pairs import two_classifiers
from helpers.untouched import untouched
from torch import nn

from lightning_rebasin import loss_plane, measure_barrier
from lightning_rebasin.errors import ConfigurationError, StateDictError
from lightning_rebasin.landscape.directions import filter_normalised
from lightning_rebasin.landscape.paths import Bezier

BATCH = [torch.zeros(1, 1)]


def quadratic():
    """``L(w) = ½ wᵀ A w + g·w`` over a weight of five numbers."""
    torch.manual_seed(0)
    module = nn.Linear(5, 1, bias=False).double()
    root = torch.randn(5, 5, dtype=torch.float64)
    matrix = root @ root.T
    slope = torch.randn(5, dtype=torch.float64)

    def value(w):
        return 0.5 * w @ matrix @ w + slope @ w

    def loss(net, _):
        return value(net.weight[0])

    return module, value, loss


def states(count, seed=1):
    torch.manual_seed(seed)
    return [
        {"weight": torch.randn(1, 5, dtype=torch.float64)}
        for _ in range(count)
    ]


def test_a_quadratic_loss_is_its_formula_on_the_gram_schmidt_axes():
    module, value, loss = quadratic()
    models = states(3)
    plane = loss_plane(
        module, models, BATCH, points=(4, 3), margin=0.5, loss=loss
    )
    a, b, c = (m["weight"][0] for m in models)
    u = b - a
    v = (c - a) - ((c - a) @ u) / (u @ u) * u
    e1, e2 = u / u.norm(), v / v.norm()
    gram = torch.stack([e1, e2]) @ torch.stack([e1, e2]).T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64))
    assert (len(plane.xs), len(plane.ys)) == (4, 3)
    for j, y in enumerate(plane.ys):
        for i, x in enumerate(plane.xs):
            expected = float(value(a + x * e1 + y * e2))
            found = plane.values["loss"][j][i]
            assert found == pytest.approx(expected, rel=1e-10)
    for (x, y), state in zip(plane.models, (a, b, c), strict=True):
        torch.testing.assert_close(a + x * e1 + y * e2, state)
    assert plane.model_values["loss"] == pytest.approx(
        [float(value(w)) for w in (a, b, c)], rel=1e-12
    )


def test_the_margin_is_per_width_and_per_height():
    module, _, loss = quadratic()
    plane = loss_plane(
        module, states(3), BATCH, points=2, margin=0.25, loss=loss
    )
    xs = [x for x, _ in plane.models]
    height = plane.models[2][1]
    width = max(xs) - min(xs)
    assert plane.xs == pytest.approx(
        (min(xs) - 0.25 * width, max(xs) + 0.25 * width)
    )
    assert plane.ys == pytest.approx((-0.25 * height, 1.25 * height))


def test_the_models_have_their_own_values_and_every_logged_metric():
    module, a, b = two_classifiers()
    c = {k: torch.zeros_like(v) for k, v in a.items()}
    plane = loss_plane(module, [a, b, c], val_loader(), points=3)
    ends = measure_barrier(module, a, b, val_loader(), points=2)
    assert set(plane.values) == set(ends.values)
    assert plane.higher_is_better == ends.higher_is_better
    assert plane.samples == ends.samples == 50
    for name, row in ends.values.items():
        assert plane.model_values[name][:2] == (row[0], row[-1])


def test_directions_are_used_as_they_are():
    module, value, loss = quadratic()
    origin, d, e = states(3)
    plane = loss_plane(
        module, [origin], BATCH, directions=(d, e), points=3, loss=loss
    )
    assert plane.xs == plane.ys == (-1.0, 0.0, 1.0)
    for j, y in enumerate(plane.ys):
        for i, x in enumerate(plane.xs):
            w = origin["weight"] + x * d["weight"] + y * e["weight"]
            assert plane.values["loss"][j][i] == pytest.approx(
                float(value(w[0])), rel=1e-10
            )
    scaled = filter_normalised(d, origin)
    again = loss_plane(
        module, [origin], BATCH, directions=(scaled, e), points=3, loss=loss
    )
    assert again.values["loss"][1][2] == pytest.approx(
        float(value((origin["weight"] + scaled["weight"])[0])), rel=1e-10
    )


def test_random_directions_are_two_seeded_and_normalised():
    module, _, loss = quadratic()
    (origin,) = states(1)

    def offsets(seed):
        seen = []

        def look(net, batch):
            seen.append(net.weight.clone() - origin["weight"])
            return loss(net, batch)

        loss_plane(module, [origin], BATCH, points=3, seed=seed, loss=look)
        return seen

    one, same, other = offsets(1), offsets(1), offsets(2)
    assert all(torch.equal(x, y) for x, y in zip(one, same, strict=True))
    assert not any(torch.allclose(one[2], y) for y in other)
    # The middles of the four sides are one filter's length away, along two lines.
    norm = float(origin["weight"].norm())
    near = [
        o for o in one if math.isclose(float(o.norm()), norm, rel_tol=1e-6)
    ]
    assert len(near) >= 4
    assert torch.linalg.matrix_rank(torch.cat(near), rtol=1e-6) == 2


def test_a_curve_is_projected():
    module, _, loss = quadratic()
    models = states(3)
    a, b, c = models
    plane = loss_plane(
        module, models, BATCH, points=2, loss=loss, curve=Bezier((a, c, b))
    )
    assert plane.off_plane < 1e-6
    # At t = ½ the weights are a/4 + c/2 + b/4, and so are the coordinates.
    weights = (0.25, 0.25, 0.5)
    expected = [
        sum(w * xy[k] for w, xy in zip(weights, plane.models, strict=True))
        for k in (0, 1)
    ]
    assert plane.curve[30] == pytest.approx(expected)
    (off,) = states(1, seed=9)
    plane = loss_plane(
        module, models, BATCH, points=2, loss=loss, curve=[a, off, b]
    )
    assert plane.off_plane > 0.1


def test_batch_norm_is_re_estimated_at_models_and_between():
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = BatchNormCNN()
        models.append({n: t.clone() for n, t in net.state_dict().items()})
    images = [torch.randn(6, 3, 8, 8) for _ in range(2)]

    def loss(module, x):
        return module(x).square().mean()

    options = {"loss": loss, "batch_norm": images}
    plane = loss_plane(net, models, images, points=3, margin=0.0, **options)
    line = measure_barrier(
        net, models[0], models[1], images, points=3, **options
    )
    assert plane.model_values["loss"][:2] == (
        line.values["loss"][0],
        line.values["loss"][2],
    )
    # The middle of the lower edge, if the third model lies between the first two.
    _, (width, _), (along, _) = plane.models
    assert 0 <= along <= width
    assert plane.values["loss"][0][1] == pytest.approx(
        line.values["loss"][1], rel=1e-4
    )
    plain = measure_barrier(net, models[0], models[1], images, loss=loss)
    assert abs(plain.midpoint("loss") / line.midpoint("loss") - 1) > 0.01


def test_the_module_is_left_alone():
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True, noise=True)
    c = {k: v * 0 for k, v in a.items()}
    train = list(val_loader(seed=3))
    with untouched(module):
        loss_plane(
            module, [a, b, c], val_loader(), points=2, batch_norm=train,
            curve=[a, c, b],
        )  # fmt: skip
        loss_plane(module, [a], val_loader(), points=2)


def test_wrong_input_is_named():
    module, _, loss = quadratic()
    a, b, c = states(3)
    with pytest.raises(ConfigurationError, match="got 2 models"):
        loss_plane(module, [a, b], BATCH, loss=loss)
    with pytest.raises(ConfigurationError, match="got 3 models"):
        loss_plane(module, [a, b, c], BATCH, loss=loss, directions=(a, b))
    with pytest.raises(ConfigurationError, match="two directions, got 1"):
        loss_plane(module, [a], BATCH, loss=loss, directions=(a,))
    with pytest.raises(ConfigurationError, match="one line"):
        middle = {"weight": (a["weight"] + b["weight"]) / 2}
        loss_plane(module, [a, b, middle], BATCH, loss=loss)
    with pytest.raises(ConfigurationError, match="curve="):
        loss_plane(module, [a], BATCH, loss=loss, curve=[a, b])
    with pytest.raises(ConfigurationError, match="two points"):
        loss_plane(module, [a, b, c], BATCH, loss=loss, points=1)
    with pytest.raises(StateDictError, match="set of weights 3"):
        loss_plane(module, [a, b, {}], BATCH, loss=loss)
