"""The descents of one call: what counts as obvious, costly or one basin, and which end is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.costs import State, random_pair
from helpers.planted import chain
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin import match_weights
from lightning_rebasin.errors import NonFiniteError, StateDictError
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.search import pair as room
from lightning_rebasin.matching.search.pair import Pair, Source, checked
from lightning_rebasin.matching.search.policy import Start, StartKind
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

IDENTITY = Start("identity", "identity", "forward")


def pair_of(spec: PermutationSpec, a: State, b: State) -> Pair:
    return Pair(Source(spec, b, "auto", None), a, seed=0, max_sweeps=100)


def descended(pair: Pair, *starts: Start, init: Any = None) -> None:
    with tqdm(disable=True) as bar:
        for start in starts:
            pair.descend(start, init, bar)


def one_layer(units: int, inputs: int) -> PermutationSpec:
    return PermutationSpec.from_table(
        {"w": ("h", None)}, {"w": (units, inputs)}
    )


# --- the source ------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtypes", "working"),
    [
        ((torch.float32, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float32, torch.complex64), torch.float32),
        ((torch.float32, torch.complex128), torch.float64),
    ],
)
def test_costs_are_built_in_the_widest_dtype_that_is_needed(
    dtypes: tuple[torch.dtype, torch.dtype], working: torch.dtype
) -> None:
    table = {"w": ("h",), "v": ("h",)}
    spec = PermutationSpec.from_table(table, {"w": (2,), "v": (2,)})
    state = {
        name: torch.ones(2, dtype=dtype)
        for name, dtype in zip("wv", dtypes, strict=True)
    }
    assert Source(spec, state, "auto", None).dtype is working


def test_a_network_without_parameters() -> None:
    spec = PermutationSpec.from_table({}, {})
    source = Source(spec, {}, "auto", None)
    assert source.names == ()
    assert source.dtype is torch.float32
    result_of = Pair(source, {}, seed=0, max_sweeps=1)
    descended(result_of, IDENTITY)
    assert result_of.result(0.0, choose_basin=True).objective == 0.0


def test_states_that_do_not_fit_are_named() -> None:
    spec = one_layer(2, 1)
    good = {"w": torch.tensor([[1.0], [2.0]])}
    assert checked(spec, good, "source", ["w"]).norms == {
        "w": pytest.approx(5**0.5)
    }
    with pytest.raises(StateDictError, match=r"reference.*'w'"):
        checked(spec, {}, "reference", ["w"])
    bad = {"w": torch.tensor([[1.0], [float("nan")]])}
    with pytest.raises(NonFiniteError, match=r"source.*'w'"):
        checked(spec, bad, "source", ["w"])
    # The squares of these do not fit float32, but they are finite.
    huge = {"w": torch.tensor([[3e38], [3e38]])}
    checked(spec, huge, "source", ["w"])


# --- what is looked at before any descent -----------------------------------


def at_angle(cosine: float) -> tuple[State, State]:
    """Two weights of that cosine between them."""
    sine = (1 - cosine**2) ** 0.5
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[cosine, sine], [0.0, 0.0]], dtype=torch.float64)
    return {"w": a}, {"w": b}


@pytest.mark.parametrize(
    ("cosine", "obvious"),
    [(1.0, True), (0.91, True), (0.89, False), (0.0, False), (-1.0, False)],
)
def test_networks_of_a_cosine_over_nine_tenths_are_obviously_alike(
    cosine: float, obvious: bool
) -> None:
    assert pair_of(one_layer(2, 2), *at_angle(cosine)).obvious is obvious


def test_nothing_is_obvious_about_networks_of_zeros() -> None:
    zeros = {"w": torch.zeros(2, 2)}
    assert not pair_of(one_layer(2, 2), zeros, zeros).obvious


def test_gains_near_one_do_not_make_networks_alike() -> None:
    table = {"w": ("h", None), "gain": ("h",)}
    shapes = {"w": (4, 3), "gain": (4,)}
    spec = PermutationSpec.from_table(table, shapes)
    a, b = random_pair(shapes)
    for state in (a, b):
        state["gain"] = torch.full((4,), 100.0, dtype=torch.float64)
    pair = pair_of(spec, a, b)
    assert not pair.obvious
    descended(pair, IDENTITY)
    assert not pair.result(0.0, choose_basin=True).same_basin
    # Where there is nothing but vectors, they must do.
    vectors = PermutationSpec.from_table({"gain": ("h",)}, {"gain": (4,)})
    gain = {"gain": a["gain"]}
    assert pair_of(vectors, gain, gain).obvious


def square(units: int) -> Pair:
    """One weight between two groups of as many units."""
    table = {"w": ("h", "k")}
    spec = PermutationSpec.from_table(table, {"w": (units, units)})
    state = {"w": torch.ones(units, units)}
    return pair_of(spec, state, state)


def test_work_of_a_sweep_by_hand() -> None:
    """For each of the two groups one product of n × n matrices mixes, one makes the cost: four times 2 n³."""
    assert square(10).work == 8 * 10**3


def test_a_slow_start_is_costly_from_half_of_its_sweeps_on() -> None:
    """Of 30 sweeps 15 are affordable up to 1e10 / 15 = 6.67e8 operations a sweep: n = 437."""
    assert not square(400).costly
    assert square(440).costly


# --- which end is kept -----------------------------------------------------


def exchanged(weight: Tensor, i: int, j: int) -> Tensor:
    order = torch.arange(len(weight))
    order[[i, j]] = order[[j, i]]
    return weight[order]


def two_units_of_sixty(scale: float) -> tuple[State, State]:
    """The source is the reference but for two units that changed places, ``scale`` times as large as the others."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    weight[:2] *= scale
    return {"w": weight}, {"w": exchanged(weight, 0, 1)}


def moved_units(scale: float, *, choose_basin: bool) -> tuple[int, bool]:
    """How many units the result moves, and whether it saw one basin."""
    a, b = two_units_of_sixty(scale)
    pair = pair_of(one_layer(60, 5), a, b)
    descended(pair, IDENTITY)
    result = pair.result(0.0, choose_basin=choose_basin)
    expected = objective(one_layer(60, 5), a, b, result.permutation)
    assert result.objective == pytest.approx(expected)
    return round(60 * result.moved_fraction), result.same_basin


def test_in_one_basin_units_that_hardly_matter_stay_in_place() -> None:
    assert moved_units(0.1, choose_basin=True) == (0, True)
    # Somebody who asked for a start gets what the descent found.
    assert moved_units(0.1, choose_basin=False) == (2, True)


def test_in_one_basin_units_that_matter_move() -> None:
    assert moved_units(1.0, choose_basin=True) == (2, True)


def test_units_that_matter_most_make_another_basin() -> None:
    assert moved_units(10.0, choose_basin=True) == (2, False)


def test_the_best_end_is_kept_and_all_are_reported() -> None:
    table, a, b = chain((6, 20, 15, 4), 0, torch.float64)
    spec = PermutationSpec.from_table(table, a)
    pair = pair_of(spec, a, b)
    kinds: tuple[StartKind, ...] = ("random", "identity", "annealed", "random")
    for kind in kinds:
        descended(pair, Start(f"a {kind} one", kind, "forward"))
    result = pair.result(0.0, choose_basin=True)
    assert [d.start for d in result.descents] == [
        f"a {kind} one" for kind in kinds
    ]
    ends = [descent.objective for descent in result.descents]
    assert len(set(ends)) > 1
    assert result.objective == max(ends)
    assert result.objective == pytest.approx(
        objective(spec, a, b, result.permutation)
    )
    assert result.identity_objective == pytest.approx(objective(spec, a, b))


def test_doing_nothing_is_kept_where_every_descent_ends_lower() -> None:
    table, a, _ = chain((6, 20, 15, 4), 0, torch.float64)
    spec = PermutationSpec.from_table(table, a)
    source = Source(spec, a, "auto", None)
    pair = Pair(source, a, seed=0, max_sweeps=1)
    descended(pair, Start("random", "random", "forward"))
    result = pair.result(0.0, choose_basin=False)
    assert result.descents[0].objective < result.identity_objective
    assert result.permutation.is_identity


def test_a_given_permutation_is_where_the_descent_begins() -> None:
    spec = one_layer(4, 3)
    a, b = random_pair({"w": (4, 3)})
    start = Permutation(spec, {"h": torch.tensor([3, 2, 1, 0])})
    source = Source(spec, b, "auto", None)
    pair = Pair(source, a, seed=0, max_sweeps=100)
    before = source.state
    assert before is None
    descended(pair, Start("given", "given", "forward"), init=start)
    descent = pair.result(0.0, choose_basin=False).descents[0]
    first = objective(spec, a, b, start)
    assert descent.objectives[0] == pytest.approx(first)
    assert source.state is not None
    assert source.state.sweeps == descent.sweeps


def test_what_cannot_be_better_ends_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same network in another order: once it is found, no other start can be better."""
    table, a, _ = chain((8, 24, 20, 5), 4)
    spec = PermutationSpec.from_table(table, a)
    planted = Permutation.random(spec, torch.Generator().manual_seed(0))
    b = planted.apply(a)
    found = match_weights(spec, a, b)
    assert found.permutation == planted.inverse()
    largest = found.norms[0] * found.norms[1]
    assert found.objective == pytest.approx(largest, rel=1e-6)
    # The first descents may end in a poor optimum; the one that finds it is the last one.
    assert len(found.descents) < 3
    monkeypatch.setattr(room, "PROVED", 1.1)
    assert len(match_weights(spec, a, b).descents) == 3
    # Two networks that were drawn apart can never reach the bound.
    monkeypatch.undo()
    table, a, b = chain((8, 24, 20, 5), 4)
    assert len(match_weights(spec, a, b).descents) == 3
