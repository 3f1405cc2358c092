"""The straight-through estimator: gradient, projection, and a problem that only it solves."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import textbook
from helpers.models import mlp
from torch import Tensor
from torch.func import functional_call

from lightning_rebasin.matching import match_weights
from lightning_rebasin.matching.straight_through import (
    Projector,
    projection_target,
    straight_through,
    straight_through_point,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def mlp_table(state: dict[str, Tensor]) -> dict[str, tuple[str | None, ...]]:
    """Hidden layers of a Sequential MLP."""
    layers = [name.split(".")[0] for name in state if name.endswith("weight")]
    table: dict[str, tuple[str | None, ...]] = {}
    for i, layer in enumerate(layers):
        before = None if i == 0 else f"h{i - 1}"
        after = None if i == len(layers) - 1 else f"h{i}"
        table |= {
            f"{layer}.weight": (after, before),
            f"{layer}.bias": (after,),
        }
    return table


def mlp_spec(state: dict[str, Tensor]) -> PermutationSpec:
    return PermutationSpec.from_table(mlp_table(state), state)


def random_state(
    *sizes: int, seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(t.shape, generator=generator, dtype=dtype)
        for n, t in mlp(*sizes).state_dict().items()
    }


def textbook_projection(
    target: dict[str, Tensor],
    source: dict[str, Tensor],
    start: Permutation,
    seed: int,
) -> Permutation:
    """Algorithm 1 as in the paper, visiting the groups in the same random orders."""
    generator = torch.Generator().manual_seed(seed)
    groups = list(start.spec.groups)

    def order(_sweep: int) -> list[str]:
        return [
            groups[i]
            for i in torch.randperm(len(groups), generator=generator).tolist()
        ]

    return Permutation(
        start.spec,
        textbook.weight_matching(
            mlp_table(target), target, source, order, dict(start.orders)
        ),
    )


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[n].double() * b[n].double()).sum()) for n in a)


def test_value_is_exact_and_gradient_passes_through() -> None:
    value, free = torch.randn(50), (1e8 * torch.randn(50)).requires_grad_()
    result = straight_through(value, free)
    assert torch.equal(result, value)
    upstream = torch.randn(50)
    result.backward(upstream)
    assert torch.equal(free.grad, upstream)


@pytest.mark.parametrize("stands_for", ["endpoint", "midpoint"])
@pytest.mark.parametrize("lam", [0.5, 0.3])
def test_gradient_equals_the_one_derived_by_hand(
    stands_for: str, lam: float
) -> None:
    """f = W2·tanh(W1 x + b1) + b2 with squared loss: ∂L/∂θ written out, times λ (endpoint) or 2λ (midpoint)."""
    sizes = (3, 4, 2)
    a, b, free = (random_state(*sizes, seed=seed) for seed in (1, 2, 3))
    free = {name: tensor.requires_grad_() for name, tensor in free.items()}
    aligned = Permutation(
        mlp_spec(a), {"h0": torch.tensor([2, 0, 3, 1])}
    ).apply(b)
    x, y = (
        torch.randn(5, 3, dtype=torch.float64),
        torch.randn(5, 2, dtype=torch.float64),
    )

    point = straight_through_point(free, aligned, a, lam, stands_for)
    hidden = torch.tanh(x @ point["0.weight"].T + point["0.bias"])
    loss = (
        0.5
        * (hidden @ point["2.weight"].T + point["2.bias"] - y).square().sum()
    )
    loss.backward()

    at = {name: (1 - lam) * a[name] + lam * aligned[name] for name in a}
    for name, tensor in point.items():
        torch.testing.assert_close(
            tensor.detach(), at[name], rtol=0, atol=1e-14
        )
    h = torch.tanh(x @ at["0.weight"].T + at["0.bias"])
    error = h @ at["2.weight"].T + at["2.bias"] - y
    back = (error @ at["2.weight"]) * (1 - h.square())
    expected = {
        "0.weight": back.T @ x,
        "0.bias": back.sum(0),
        "2.weight": error.T @ h,
        "2.bias": error.sum(0),
    }
    factor = lam if stands_for == "endpoint" else 2 * lam
    for name, gradient in expected.items():
        torch.testing.assert_close(
            free[name].grad, factor * gradient, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("stands_for", ["endpoint", "midpoint"])
@pytest.mark.parametrize("projection", ["inner_product", "l2"])
def test_target_agrees_with_the_definition_over_all_permutations(
    stands_for: str, projection: str
) -> None:
    """Brute force: argmax of the inner product with Θ̃, or argmin of the distance of what Θ̃ stands for."""
    a, b, free = (random_state(2, 3, 3, 1, seed=seed) for seed in (4, 5, 6))
    spec = mlp_spec(a)
    target = projection_target(free, a, stands_for, projection)
    scores, definition = [], []
    for orders in itertools.product(
        itertools.permutations(range(3)), repeat=2
    ):
        p = Permutation(
            spec,
            {f"h{i}": torch.tensor(order) for i, order in enumerate(orders)},
        )
        aligned = p.apply(b)
        stands = (
            aligned
            if stands_for == "endpoint"
            else {n: (a[n] + aligned[n]) / 2 for n in a}
        )
        scores.append(inner(target, aligned))
        if projection == "inner_product":
            definition.append(inner(free, stands))
        else:
            definition.append(
                -sum(float((free[n] - stands[n]).square().sum()) for n in free)
            )
    ranking = torch.tensor(scores).argsort()
    assert torch.equal(ranking, torch.tensor(definition).argsort())


def test_endpoint_projections_coincide_and_midpoint_ones_do_not() -> None:
    a, free = random_state(2, 3, 1, seed=1), random_state(2, 3, 1, seed=2)
    targets = {
        (s, p): projection_target(free, a, s, p)["0.weight"]
        for s in ("endpoint", "midpoint")
        for p in ("inner_product", "l2")
    }
    assert torch.equal(
        targets["endpoint", "inner_product"], targets["endpoint", "l2"]
    )
    assert not torch.equal(
        targets["midpoint", "inner_product"], targets["midpoint", "l2"]
    )


@pytest.mark.parametrize("projection", ["inner_product", "l2"])
def test_every_projection_of_a_run_is_the_textbook_one(
    projection: str,
) -> None:
    """30 steps of a real run whose permutation keeps moving: same start, same order, same answer each time."""
    sizes = (6, 16, 16, 3)
    a, b = (
        random_state(*sizes, seed=seed, dtype=torch.float32) for seed in (1, 2)
    )
    spec, model = mlp_spec(a), mlp(*sizes)
    free = {
        name: tensor.clone().requires_grad_() for name, tensor in a.items()
    }
    optimizer = torch.optim.SGD(free.values(), lr=0.3, momentum=0.9)
    projector = Projector(
        spec, a, b, stands_for="midpoint", projection=projection, seed=7
    )
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(64, 6, generator=generator),
        torch.randint(3, (64,), generator=generator),
    )
    seen = []
    for step in range(30):
        target = projection_target(free, a, "midpoint", projection)
        expected = textbook_projection(
            target, b, projector.permutation, seed=7 + step
        )
        result = projector.project(free, step)
        assert result.permutation == expected, f"step {step}"
        assert result.objective == pytest.approx(
            inner(target, expected.apply(b)), rel=1e-6
        )
        seen.append(expected)
        point = straight_through_point(
            free, expected.apply(b), a, 0.5, "midpoint"
        )
        loss = torch.nn.functional.cross_entropy(
            functional_call(model, point, (x,)), y
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changes = sum(
        before != after for before, after in itertools.pairwise(seen)
    )
    assert changes >= 10, "the run must move, or the test shows nothing"


def decoy_problem() -> tuple[
    PermutationSpec, dict[str, Tensor], dict[str, Tensor], Permutation, Tensor
]:
    """Two networks that are the same function up to a planted order of their three hidden units, and a decoy.

    The last three inputs are always zero, so their weights change nothing; but they are so large that weight matching
    prefers the identity (by 0.5) to the planted order.
    """
    planted = torch.tensor([1, 2, 0])
    live = torch.tensor(
        [[1.54, -0.29], [-2.18, 0.57], [-1.08, -1.40]], dtype=torch.float64
    )
    out, back = torch.eye(3, dtype=torch.float64), torch.argsort(planted)
    gap = float(
        (live * (live - live[back])).sum() + (out * (out - out[:, back])).sum()
    )
    decoy = ((gap + 0.5) / 3) ** 0.5 * torch.eye(3, dtype=torch.float64)
    a = {
        "0.weight": torch.cat([live, decoy], 1),
        "0.bias": torch.zeros(3),
        "2.weight": out,
        "2.bias": torch.zeros(3),
    }
    a = {name: tensor.double() for name, tensor in a.items()}
    b = {
        **a,
        "0.weight": torch.cat([live[back], decoy], 1),
        "2.weight": out[:, back],
    }
    spec = mlp_spec(a)
    x = torch.randn(
        64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return (
        spec,
        a,
        b,
        Permutation(spec, {"h0": planted}),
        torch.cat([x, torch.zeros(64, 3, dtype=torch.float64)], 1),
    )


def test_finds_the_best_permutation_that_weight_matching_misses() -> None:
    spec, a, b, planted, x = decoy_problem()
    model = mlp(5, 3, 3).double()
    y = functional_call(model, a, (x,)).detach()

    def midpoint_loss(p: Permutation) -> float:
        aligned = p.apply(b)
        middle = {n: (a[n] + aligned[n]) / 2 for n in a}
        return float(
            (functional_call(model, middle, (x,)) - y).square().mean()
        )

    everything = [
        Permutation(spec, {"h0": torch.tensor(p)})
        for p in itertools.permutations(range(3))
    ]
    by_weights = max(everything, key=lambda p: inner(a, p.apply(b)))
    best = min(everything, key=midpoint_loss)
    assert best == planted
    assert midpoint_loss(best) == pytest.approx(0, abs=1e-20)
    assert by_weights != best, (
        "not even an exhaustive weight matching finds it"
    )
    assert match_weights(spec, a, b).permutation == by_weights

    free = {
        name: tensor.clone().requires_grad_() for name, tensor in a.items()
    }
    optimizer = torch.optim.SGD(free.values(), lr=0.1)
    projector = Projector(spec, a, b)
    for step in range(50):
        result = projector.project(free, step)
        if step == 0:
            assert result.permutation == by_weights
        point = straight_through_point(
            free, result.permutation.apply(b), a, 0.5
        )
        loss = (functional_call(model, point, (x,)) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert projector.permutation == best
