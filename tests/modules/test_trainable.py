"""Points that gradients flow through."""

import torch

from lightning_rebasin.landscape.paths import Bezier, Polygon, Star
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.modules.trainable import (
    mean_squared_distance,
    squared_norm,
    trainable_point,
)


def tensors(count, *, learned=()):
    draw = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        w = torch.randn(4, 3, generator=draw, dtype=torch.float64)
        found.append({"w": w.requires_grad_(number in learned)})
    return found


def loss(w):
    return (w.sin() * w).sum()


def test_bends_of_a_curve_have_the_gradients_of_finite_differences():
    a, first, second, b = tensors(4, learned=(1, 2))
    path, free = Bezier((a, first, second, b)), [first, second]
    point = path.at(0.3)
    weights = trainable_point(point, ["w"], free)["w"]
    torch.testing.assert_close(weights.detach(), point.state()["w"])
    loss(weights).backward()
    step = 1e-6
    for bend in free:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                bend["w"][1, 2] += sign * step
                values.append(float(loss(point.state()["w"])))
                bend["w"][1, 2] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(float(bend["w"].grad[1, 2]) - slope) < 1e-8


def test_a_bend_without_a_share_has_a_gradient_of_zero():
    a, first, second, b = tensors(4, learned=(1, 2))
    point = Polygon((a, first, second, b)).at(0.1)
    weights = trainable_point(point, ["w"], [first, second])
    loss(weights["w"]).backward()
    assert not second["w"].grad.any()
    assert first["w"].grad.any()


def test_the_centre_itself_is_a_point():
    centre, end = tensors(2, learned=(0,))
    point = Star(centre, (end,)).at(0, 0.0)
    weights = trainable_point(point, ["w"], [centre])["w"]
    loss(weights).backward()
    assert torch.equal(weights, centre["w"])
    expected = centre["w"].detach().requires_grad_()
    loss(expected).backward()
    assert torch.equal(centre["w"].grad, expected.grad)


def test_anchors_are_not_written_to():
    a, bend, b = tensors(3, learned=(1,))
    before = [anchor["w"].detach().clone() for anchor in (a, bend, b)]
    weights = trainable_point(Bezier((a, bend, b)).at(0.4), ["w"], [bend])
    with torch.no_grad():
        weights["w"].zero_()
    for anchor, kept in zip((a, bend, b), before, strict=True):
        assert torch.equal(anchor["w"].detach(), kept)


def test_the_gradient_of_the_norm_is_twice_the_tensor():
    x = torch.randn(3, 2, dtype=torch.float64).T.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: squared_norm([t, 3 * t]), x)


def test_norms():
    a, b = {"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}
    assert float(squared_norm([a["w"], b["w"]])) == 10.0
    points = [Point((a, b), (0.5, 0.5)), Point((a, a), (0.5, 0.5))]
    assert float(mean_squared_distance(points, ["w"])) == 8.0
