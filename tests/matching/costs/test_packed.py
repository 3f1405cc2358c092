"""Cost matrices of small groups, packed, against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import textbook
from helpers.costs import F64, cost_cache, layouts, random_pair, roll_some
from torch import Tensor

from lightning_rebasin.matching.costs.cache import TermTable
from lightning_rebasin.matching.costs.packed import PackedCost
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Axes = tuple[str | None, ...]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_packed_costs_of_small_groups_are_the_definition(
    dtype: torch.dtype,
) -> None:
    table: dict[str, Axes] = {
        "first": ("g", None, None, None),
        "scale": ("g",),
        "middle": ("h", "g", None, None),
        "dense": ("h", "g"),
        "last": (None, "h"),
    }
    shapes = {
        "first": (24, 3, 3, 3),
        "scale": (24,),
        "middle": (40, 24, 3, 3),
        "dense": (40, 24),
        "last": (10, 40),
    }
    a, b = random_pair(shapes, dtype)
    spec = PermutationSpec.from_table(table, a)
    working = torch.float64 if dtype is torch.float64 else torch.float32
    assert all(TermTable.of(spec).packings.values())
    costs = cost_cache(spec, a, b, working)
    x, y = ({n: t.to(working) for n, t in s.items()} for s in (a, b))
    generator = torch.Generator().manual_seed(0)
    flats = {"g": torch.arange(24), "h": torch.arange(40)}
    for _ in range(3):
        for group, size in (("g", 24), ("h", 40)):
            expected = textbook.cost_matrix(table, group, x, y, flats)
            torch.testing.assert_close(
                costs.matrix(group, flats), expected, rtol=1e-4, atol=1e-4
            )
            flats[group] = torch.randperm(size, generator=generator)
        assert costs.stale("g", flats)


def test_packed_costs_are_updated_by_the_rows_that_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a stream with two partners, few or many units of either move; float32, so errors would pile up."""
    table: dict[str, Axes] = {
        "h.weight": ("h", "g", None, None),
        "k.weight": ("k", "g", None, None),
        "scale": ("g",),
    }
    shapes = {
        "h.weight": (64, 64, 3, 3),
        "k.weight": (48, 64, 3, 3),
        "scale": (64,),
    }
    a, b = random_pair(shapes, torch.float32)
    spec = PermutationSpec.from_table(table, a)
    costs = cost_cache(spec, a, b, torch.float32)
    updated = PackedCost._updated
    done: list[bool] = []

    def watched(self: PackedCost, orders: list[Tensor]) -> bool:
        done.append(updated(self, orders))
        return done[-1]

    monkeypatch.setattr(PackedCost, "_updated", watched)
    generator = torch.Generator().manual_seed(0)
    flats = {
        group: torch.arange(size)
        for group, size in (("g", 64), ("h", 64), ("k", 48))
    }
    few = [(9, 7)] * 60
    for moved in ((2, 0), (0, 3), (5, 4), (64, 48), (0, 0), (20, 0), *few):
        expected = textbook.cost_matrix(table, "g", a, b, flats)
        torch.testing.assert_close(
            costs.matrix("g", flats), expected, rtol=1e-4, atol=2e-3
        )
        for group, count in zip("hk", moved, strict=True):
            flats[group] = roll_some(flats[group], count, generator)
    assert done[:4] == [True, True, True, False]
    assert done.count(True) > 40
    assert False in done[6:], "never built anew, however often it was updated"


@pytest.mark.parametrize("change", ["large", "complex", "three groups"])
def test_what_is_not_packed(change: str) -> None:
    shape = (65, 4) if change == "large" else (8, 4)
    table: dict[str, Axes] = {
        "w": ("h", None),
        "v": ("k", "h", "m") if change == "three groups" else ("k", "h"),
    }
    state = {
        "w": torch.zeros(shape),
        "v": torch.zeros((4, shape[0], 2)[: len(table["v"])]),
    }
    if change == "complex":
        state = {
            name: tensor.to(torch.complex64) for name, tensor in state.items()
        }
    spec = PermutationSpec.from_table(table, state)
    packing = TermTable.of(spec).packings["h"]
    if change == "complex":
        assert packing is not None
        assert not packing.fits(*layouts(state, state, torch.float32))
    else:
        assert packing is None


@pytest.mark.parametrize("members", [1, 2, 64, 65])
def test_one_unit_and_the_largest_group_that_is_packed(members: int) -> None:
    """Beyond 64 units nothing is packed: the costs are the same."""
    table: dict[str, Axes] = {
        "w": ("h", None),
        "v": ("k", "h"),
        "bias": ("h",),
        "scale": ("h",),
    }
    shapes = {
        "w": (members, 3),
        "v": (5, members),
        "bias": (members,),
        "scale": (members,),
    }
    a, b = random_pair(shapes)
    spec = PermutationSpec.from_table(table, a)
    costs = cost_cache(spec, a, b)
    x, y = ({n: t.numpy() for n, t in s.items()} for s in (a, b))
    order = np.array([3, 1, 4, 0, 2])
    flats = {"h": torch.arange(members), "k": torch.from_numpy(order)}
    expected = (
        np.einsum("im,jm->ij", x["w"], y["w"])
        + np.einsum("mi,mj->ij", x["v"], y["v"][order])
        + np.einsum("i,j->ij", x["bias"], y["bias"])
        + np.einsum("i,j->ij", x["scale"], y["scale"])
    )
    np.testing.assert_allclose(
        costs.matrix("h", flats).numpy(), expected, rtol=1e-12, atol=1e-12
    )


def test_a_group_of_biases_alone() -> None:
    spec = PermutationSpec.from_table({"bias": ("h",)}, {"bias": (3,)})
    a = {"bias": torch.tensor([1.0, 2.0, 3.0], dtype=F64)}
    b = {"bias": torch.tensor([5.0, 7.0, 11.0], dtype=F64)}
    costs = cost_cache(spec, a, b)
    found = costs.matrix("h", {"h": torch.arange(3)})
    assert found.tolist() == [[5, 7, 11], [10, 14, 22], [15, 21, 33]]


def test_the_weights_are_not_written_to() -> None:
    table: dict[str, Axes] = {"w": ("h", None), "v": ("k", "h")}
    a, b = random_pair({"w": (6, 3), "v": (5, 6)})
    kept = [{n: t.clone() for n, t in s.items()} for s in (a, b)]
    spec = PermutationSpec.from_table(table, a)
    costs = cost_cache(spec, a, b)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
        costs.matrix("h", {"h": torch.arange(6), "k": torch.tensor(order)})
    for state, before in zip((a, b), kept, strict=True):
        assert all(torch.equal(state[n], before[n]) for n in state)
