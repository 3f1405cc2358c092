"""Weight matching against brute force, planted permutations and its own promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from helpers import textbook
from helpers.models import ResNet20, mlp, randomise
from helpers.planted import (
    GroupedResidual,
    Recurrent,
    ResidualMLP,
    Transformer,
    chain,
    small_vgg,
)
from helpers.specs import grouped_spec, nested_spec, random_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_rebasin import infer_spec
from lightning_rebasin.errors import (
    ConfigurationError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.matching import MatchState, WeightMatcher, match_weights
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.search.descent import CoordinateDescent
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

F64 = torch.float64


def test_brute_force_never_beaten_by_much_and_found_mostly() -> None:
    found = 0
    for seed in range(12):
        table, a, b = chain((3, 4, 3, 2), seed, F64)
        spec = PermutationSpec.from_table(table, a)
        of_4, of_3 = (
            [torch.tensor(p) for p in itertools.permutations(range(n))]
            for n in (4, 3)
        )
        best = max(
            objective(spec, a, b, Permutation(spec, {"h0": p, "h1": q}))
            for p in of_4
            for q in of_3
        )
        result = match_weights(spec, a, b, seed=seed)
        assert result.objective <= best + 1e-9
        found += result.objective >= best - 1e-9
    assert found >= 10


# --- promises ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["identity", "random", None]),
    st.sampled_from([nested_spec, grouped_spec]),
)
def test_monotone_and_never_below_the_identity(
    seed: int, init: Any, make: Callable[[], PermutationSpec]
) -> None:
    spec = make()
    a, b = random_state(spec, seed), random_state(spec, seed + 1)
    result = match_weights(spec, a, b, init=init, seed=seed)
    assert result.objective >= result.identity_objective
    assert result.objective == pytest.approx(
        objective(spec, a, b, result.permutation), rel=1e-12
    )
    for descent in result.descents:
        assert all(y >= x for x, y in itertools.pairwise(descent.objectives))
        assert result.objective >= descent.objective or result.same_basin


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_dtypes(dtype: torch.dtype) -> None:
    table, a, b = chain((10, 40, 30, 5), 1)
    a, b = ({n: t.to(dtype) for n, t in state.items()} for state in (a, b))
    spec = PermutationSpec.from_table(table, a)
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert match_weights(spec, p.apply(b), b).permutation == p
    mixed = match_weights(spec, {n: t.float() for n, t in a.items()}, b)
    assert mixed.objective >= mixed.identity_objective


def test_complex_weights() -> None:
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (6, 3)})
    b = {
        "w": torch.randn(
            6,
            3,
            dtype=torch.complex64,
            generator=torch.Generator().manual_seed(0),
        )
    }
    p = Permutation.random(spec, torch.Generator().manual_seed(1))
    assert match_weights(spec, p.apply(b), b).permutation == p


def test_same_seed_same_result_and_inputs_untouched() -> None:
    table, a, b = chain((10, 40, 30, 5), 2)
    spec = PermutationSpec.from_table(table, a)
    start = Permutation.random(spec, torch.Generator().manual_seed(3))
    copies = [{n: t.clone() for n, t in state.items()} for state in (a, b)]
    kept = {g: o.clone() for g, o in start.orders.items()}
    first, second = (
        match_weights(spec, a, b, seed=7, init=start, restarts=2)
        for _ in range(2)
    )
    assert first.permutation == second.permutation
    assert [d.objectives for d in first.descents] == [
        d.objectives for d in second.descents
    ]
    assert all(torch.equal(o, kept[g]) for g, o in start.orders.items())
    assert all(
        torch.equal(x[n], y[n])
        for x, y in zip((a, b), copies, strict=True)
        for n in x
    )


def test_stopped_and_resumed_ends_where_it_would_have_ended() -> None:
    table, a, b = chain((10, 170, 60, 60, 5), 4)
    spec = PermutationSpec.from_table(table, a)
    whole = match_weights(spec, a, b, init="identity", seed=5)
    part = match_weights(spec, a, b, init="identity", seed=5, max_sweeps=2)
    assert not part.converged
    assert isinstance(part.state, MatchState)
    rest = match_weights(spec, a, b, init=part.state)
    assert rest.permutation == whole.permutation
    assert rest.state is not None and whole.state is not None
    assert rest.state.sweeps == whole.state.sweeps


def test_an_interrupted_matcher_knows_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, a, b = chain((10, 60, 60, 60, 5), 4)
    spec = PermutationSpec.from_table(table, a)
    matcher = WeightMatcher(spec, b)
    visits = CoordinateDescent.visits
    calls: list[int] = []

    def interrupted(
        self: CoordinateDescent, order: Sequence[int]
    ) -> Iterator[float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return visits(self, order)

    monkeypatch.setattr(CoordinateDescent, "visits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        matcher.match(a, "identity", seed=5)
    monkeypatch.undo()
    assert matcher.state is not None
    assert matcher.state.sweeps == 2
    resumed = matcher.match(a, matcher.state)
    assert (
        resumed.permutation
        == match_weights(spec, a, b, init="identity", seed=5).permutation
    )


def test_moving_reference_stays_exact_with_warm_duals() -> None:
    table, a, b = chain((20, 200, 180, 5), 6, F64)
    spec = PermutationSpec.from_table(table, a)
    matcher = WeightMatcher(spec, b)
    permutation, generator = (
        Permutation.identity(spec),
        torch.Generator().manual_seed(0),
    )
    for step in range(6):
        a = {
            n: t + 0.02 * torch.randn(t.shape, generator=generator, dtype=F64)
            for n, t in a.items()
        }
        warm = matcher.match(a, permutation, seed=step)
        cold = match_weights(spec, a, b, init=permutation, seed=step)
        assert warm.permutation == cold.permutation
        permutation = warm.permutation


def test_progress_bar_shows_the_objective(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, a, b = chain((10, 20, 15, 5), 0)
    spec = PermutationSpec.from_table(table, a)
    match_weights(spec, a, b, progress=True)
    shown = capsys.readouterr().err
    assert "weight matching" in shown
    assert "best=" in shown


# --- same basin ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_one_basin_is_recognised(noise: float) -> None:
    table, a, _ = chain((20, 60, 40, 5), 0)
    spec = PermutationSpec.from_table(table, a)
    generator = torch.Generator().manual_seed(0)
    b = {
        n: t + noise * t.std() * torch.randn(t.shape, generator=generator)
        for n, t in a.items()
    }
    result = match_weights(spec, a, b)
    assert result.same_basin
    assert result.permutation.is_identity
    assert "one basin" in result.report()
    other = match_weights(spec, a, chain((20, 60, 40, 5), 1)[1])
    assert not other.same_basin


# --- planted -------------------------------------------------------------------------------------------------------

PLANTED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: mlp(20, 64, 64, 64, 10), lambda: torch.zeros(2, 20)),
    "vgg": (small_vgg, lambda: torch.randn(2, 3, 8, 8)),
    "resnet20": (ResNet20, lambda: torch.randn(2, 3, 32, 32)),
    "transformer": (Transformer, lambda: torch.randint(0, 20, (2, 8))),
    "residual mlp": (ResidualMLP, lambda: torch.randn(2, 1)),
    "grouped convolution": (GroupedResidual, lambda: torch.randn(2, 3, 8, 8)),
    "lstm": (Recurrent, lambda: torch.randn(2, 4, 10)),
}


def recovered(
    make: Callable[[], nn.Module],
    example: Callable[[], Tensor],
    seeds: Iterable[int],
) -> list[bool]:
    torch.manual_seed(0)
    spec = infer_spec(randomise(make()), example())
    found = []
    for seed in seeds:
        state = randomise(make(), seed).state_dict()
        p = Permutation.random(spec, torch.Generator().manual_seed(seed))
        found.append(
            match_weights(spec, p.apply(state), state, seed=seed).permutation
            == p
        )
    return found


@pytest.mark.parametrize("name", list(PLANTED))
def test_planted_permutation_is_recovered_exactly(name: str) -> None:
    assert all(recovered(*PLANTED[name], range(3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PLANTED))
def test_planted_permutation_is_recovered_exactly_for_20_seeds(
    name: str,
) -> None:
    assert all(recovered(*PLANTED[name], range(20)))


@pytest.mark.slow
def test_planted_permutation_of_a_wide_resnet_for_20_seeds() -> None:
    assert all(
        recovered(
            lambda: ResNet20(64), lambda: torch.randn(2, 3, 32, 32), range(20)
        )
    )


def test_textbook_rarely_recovers_the_residual_mlp() -> None:
    """The planted test is a hard one: from random starts the textbook mostly fails on the same network."""
    model = ResidualMLP()
    table, state = model.table(), randomise(model).state_dict()
    spec = PermutationSpec.from_table(table, state)
    groups, hits = list(spec.groups), 0
    for seed in range(6):
        p = Permutation.random(spec, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        found = textbook.weight_matching(
            table,
            p.apply(state),
            state,
            lambda _: [
                groups[i]
                for i in torch.randperm(len(groups), generator=generator)
            ],
        )
        hits += all(torch.equal(found[g], p[g]) for g in groups)
    assert hits <= 3


# --- errors --------------------------------------------------------------------------------------------------------


def test_bad_states_are_named() -> None:
    table, a, b = chain((4, 5, 3), 0)
    spec = PermutationSpec.from_table(table, a)
    with pytest.raises(StateDictError, match=r"reference.*0\.bias"):
        match_weights(spec, {n: t for n, t in a.items() if n != "0.bias"}, b)
    with pytest.raises(StateDictError, match=r"source.*extra"):
        match_weights(spec, a, {**b, "extra": torch.zeros(1)})
    for bad in (float("nan"), float("inf")):
        broken = {n: t.clone() for n, t in b.items()}
        broken["1.weight"][0, 0] = bad
        with pytest.raises(NonFiniteError, match=r"source.*1\.weight"):
            match_weights(spec, a, broken)
        with pytest.raises(NonFiniteError, match=r"reference.*1\.weight"):
            match_weights(spec, broken, a)


@pytest.mark.parametrize(
    "option",
    [
        {"init": "best"},
        {"restarts": 0},
        {"max_sweeps": 0},
        {"solver": "gpu"},
        {"init": 3},
    ],
)
def test_bad_options(option: dict[str, Any]) -> None:
    table, a, b = chain((4, 5, 3), 0)
    with pytest.raises(ConfigurationError):
        match_weights(PermutationSpec.from_table(table, a), a, b, **option)


def test_running_statistics_and_ties_do_not_count_twice() -> None:
    shapes = {"w": (4, 2), "tied": (4, 2), "bn.running_mean": (4,)}
    table = {"w": ("h", None), "bn.running_mean": ("h",)}
    plain = PermutationSpec.from_table(table, shapes)
    spec = PermutationSpec(
        plain.groups, plain.tensors, plain.maps, aliases={"tied": "w"}
    )
    w = torch.randn(4, 2)
    a = {"w": w, "tied": w, "bn.running_mean": 1e6 * torch.randn(4)}
    b = {
        "w": w.flip(0),
        "tied": w.flip(0),
        "bn.running_mean": 1e6 * torch.randn(4),
    }
    result = match_weights(spec, a, b)
    assert result.permutation["h"].tolist() == [3, 2, 1, 0]
    assert result.objective == pytest.approx(float((w.double() ** 2).sum()))


def test_nothing_to_permute() -> None:
    spec = PermutationSpec(
        {}, PermutationSpec.from_table({}, {"w": (2, 2)}).tensors, {}
    )
    result = match_weights(
        spec, {"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)}
    )
    assert result.permutation.is_identity
    assert result.objective == 4.0


def test_huge_and_tiny_weights() -> None:
    table, a, b = chain((10, 40, 30, 5), 1)
    spec = PermutationSpec.from_table(table, a)
    expected = match_weights(spec, a, b, init="identity").permutation
    for scale in (1e17, 1e-17):
        scaled = ({n: t * scale for n, t in state.items()} for state in (a, b))
        assert (
            match_weights(spec, *scaled, init="identity").permutation
            == expected
        )
