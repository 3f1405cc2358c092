"""The probe itself: contexts, order of the points, copies."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from helpers.models import mlp
from torch import nn

from lightning_rebasin.landscape.batches import clone_batch
from lightning_rebasin.landscape.probe import FunctionProbe, Place, copy_module
from lightning_rebasin.landscape.segment import weights_of, write_interpolation


def probe_and_points(lambdas=(0.0, 0.5, 1.0)):
    net = mlp(3, 4, 2)
    a = {k: v.clone() for k, v in weights_of(net).items()}
    b = {k: v + 1 for k, v in a.items()}
    probe = FunctionProbe(
        net, len(lambdas), lambda module, x: module(x).square().mean()
    )
    return probe, [((a, b), lam) for lam in lambdas]


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
        points, x, Place(), context=lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    found = [row["loss"] for row in probe.results()]
    for ((a, b), lam), value in zip(points, found, strict=True):
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
    assert [r["loss"] for r in probe.results()] == [r["loss"] for r in other.results()][
        ::-1
    ]


def test_copies_are_frozen_and_independent():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    clone = copy_module(net)
    assert net.training
    assert not clone.training
    assert not any(p.requires_grad for p in clone.parameters())
    clone[0].weight.zero_()
    assert bool(net[0].weight.any())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_interpolation_is_exact_at_the_ends_and_rounded_once_between(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {"w": torch.randn(50, generator=generator).to(dtype), "n": torch.tensor(k)}
        for k in (3, 8)
    )
    target = {"w": torch.empty(50, dtype=dtype), "n": torch.tensor(0)}
    for lam, expected in ((0.0, a), (1.0, b)):
        write_interpolation(target, a, b, lam)
        assert all(torch.equal(target[k], expected[k]) for k in a)
    write_interpolation(target, a, b, 0.3)
    wide = 0.7 * a["w"].double() + 0.3 * b["w"].double()
    assert torch.allclose(
        target["w"].double(),
        wide,
        rtol=torch.finfo(dtype).eps,
        atol=torch.finfo(dtype).eps,
    )
    assert int(target["n"]) == 3


def test_batches_are_copied_with_their_containers():
    batch = {"x": torch.zeros(2), "more": [torch.ones(1), "text"]}
    copy = clone_batch(batch)
    copy["x"].add_(1)
    copy["more"].clear()
    assert float(batch["x"].sum()) == 0
    assert len(batch["more"]) == 2
