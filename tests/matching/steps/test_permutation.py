"""Steps of whole families against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_rebasin.matching.steps.permutation import (
    Family,
    FlatOrder,
    solve_inside,
    solve_nested,
)
from lightning_rebasin.symmetry.spec.values import Group

HEADS = Group("heads", 3)
INNER = Group("inner", 2, HEADS)


def value(cost: NDArray[np.float64], flat: FlatOrder) -> float:
    return float(cost[np.arange(len(flat)), flat].sum())


def flats() -> Iterator[tuple[FlatOrder, FlatOrder]]:
    """Every order of three heads with two dimensions inside each, as flat orders."""
    for heads in itertools.permutations(range(3)):
        for inner in itertools.product(
            itertools.permutations(range(2)), repeat=3
        ):
            yield (
                np.array(heads),
                np.array(
                    [
                        2 * h + i
                        for h, order in zip(heads, inner, strict=True)
                        for i in order
                    ]
                ),
            )


@pytest.mark.parametrize("seed", range(10))
def test_a_nested_family_is_solved_jointly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = {
        "heads": rng.standard_normal((3, 3)),
        "inner": rng.standard_normal((6, 6)),
    }
    found = solve_nested(Family(HEADS, (HEADS, INNER), coupled=False), costs)
    best = max(
        value(costs["heads"], heads) + value(costs["inner"], inner)
        for heads, inner in flats()
    )
    assert value(costs["heads"], found["heads"]) + value(
        costs["inner"], found["inner"]
    ) == pytest.approx(best)
    assert (found["inner"].reshape(3, 2) // 2 == found["heads"][:, None]).all()


@pytest.mark.parametrize("seed", range(10))
def test_inner_groups_are_solved_where_their_heads_stand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.standard_normal((6, 6))
    heads = rng.permutation(3)
    found = solve_inside(
        INNER, cost, (2 * heads[:, None] + rng.permutation(2)).reshape(-1)
    )
    assert (found.reshape(3, 2) // 2 == heads[:, None]).all()
    assert value(cost, found) == pytest.approx(
        max(value(cost, f) for h, f in flats() if (h == heads).all())
    )
