"""The probe itself: contexts, order of the points, copies."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from helpers.models import mlp

from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.probe import FunctionProbe, Place
from lightning_rebasin.landscape.weights import weights_of


def probe_and_points(lambdas=(0.0, 0.5, 1.0)):
    net = mlp(3, 4, 2)
    a = {k: v.clone() for k, v in weights_of(net).items()}
    b = {k: v + 1 for k, v in a.items()}
    probe = FunctionProbe(
        net, len(lambdas), lambda module, x: module(x).square().mean()
    )
    return probe, [Line(a, b).at(lam) for lam in lambdas]


def test_every_point_gets_a_context_of_its_own():
    """One autocast context for all of them would go on using the cast weights of the first."""
    events = []

    @contextmanager
    def context():
        events.append("enter")
        yield
        events.append("leave")

    probe, points = probe_and_points()
    step = probe.step
    probe.step = lambda *arguments: (events.append("step"), step(*arguments))
    probe.evaluate(points, torch.randn(5, 3), Place(), context=context)
    assert events == ["enter", "step", "leave"] * 3


def test_a_cached_cast_is_never_used():
    """The real thing: torch's autocast with its cache, around steps at three points."""
    probe, points = probe_and_points()
    x = torch.randn(5, 3)
    probe.evaluate(
        points,
        x,
        Place(),
        context=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    found = [row["loss"] for row in probe.results()]
    for point, value in zip(points, found, strict=True):
        (a, b), (_, lam) = point.anchors, point.coefficients
        fresh = mlp(3, 4, 2)
        fresh.load_state_dict({k: torch.lerp(a[k], b[k], lam) for k in a})
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert value == float(fresh(x).square().mean())
    assert len(set(found)) == 3


def test_results_do_not_depend_on_the_order_of_the_points():
    probe, points = probe_and_points((0.0, 0.3, 1.0))
    other, _ = probe_and_points((0.0, 0.3, 1.0))
    x = torch.randn(5, 3)
    probe.evaluate(points, x, Place())
    other.evaluate(points[::-1], x, Place())
    assert [r["loss"] for r in probe.results()] == [
        r["loss"] for r in other.results()
    ][::-1]
