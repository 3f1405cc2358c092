"""How far two sets of outputs are from each other."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from lightning_rebasin.symmetry.proof.compare import relative_error, run_all
from lightning_rebasin.symmetry.proof.sandbox import Sandbox
from lightning_rebasin.symmetry.run.examples import Example

INF, NAN = math.inf, math.nan


def error(before: Any, after: Any) -> float:
    """The error of one output tensor."""
    return relative_error(
        [{"y": torch.as_tensor(before)}], [{"y": torch.as_tensor(after)}]
    )


numbers = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_the_largest_difference_is_taken_relative_to_the_largest_value(
    pairs: list[tuple[float, float]],
) -> None:
    before = [a for a, _ in pairs]
    after = [b for _, b in pairs]
    largest = max(abs(a - b) for a, b in pairs)
    # All zeros have no scale: the error is absolute then.
    scale = max(map(abs, before)) or 1.0
    found = error(
        torch.tensor(before, dtype=torch.float64),
        torch.tensor(after, dtype=torch.float64),
    )
    assert found == pytest.approx(largest / scale, rel=1e-12)


def test_the_worst_of_all_tensors_and_examples_counts() -> None:
    old = [
        {"a": torch.tensor([1.0]), "b": torch.tensor([10.0])},
        {"a": torch.tensor([4.0])},
    ]
    new = [
        {"a": torch.tensor([1.0]), "b": torch.tensor([9.0])},
        {"a": torch.tensor([3.0])},
    ]
    # 1/10 in the first example, 1/4 in the second.
    assert relative_error(old, new) == 0.25
    assert relative_error(old[:1], new[:1]) == pytest.approx(0.1)
    assert relative_error([], []) == 0.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([True]), torch.tensor([False])),
        (torch.tensor([NAN, 1.0]), torch.tensor([1.0, 1.0])),
        (torch.tensor([1.0, 1.0]), torch.tensor([1.0, NAN])),
        (torch.tensor([INF, 1.0]), torch.tensor([-INF, 1.0])),
        (torch.tensor([1.0]), torch.tensor([INF])),
    ],
)
def test_what_cannot_be_compared_is_infinitely_far(
    before: Tensor, after: Tensor
) -> None:
    assert error(before, after) == INF


@pytest.mark.parametrize(
    "output",
    [
        torch.tensor([NAN, 2.0]),
        torch.tensor([INF, -INF, 1.0]),
        torch.tensor([3, 4]),
        torch.tensor([True, False]),
        torch.tensor([1.0 + 2.0j]),
        torch.zeros(0),
        torch.zeros(3),
    ],
)
def test_the_same_bits_are_equal_whatever_they_are(output: Tensor) -> None:
    assert error(output, output.clone()) == 0.0


def test_infinite_values_set_no_scale() -> None:
    found = error([INF, 4.0, NAN], [INF, 3.0, NAN])
    assert found == 0.25


def test_complex_numbers_differ_by_their_distance() -> None:
    # |5i| apart, of magnitude |3 + 4i| = 5
    assert error([3.0 + 4.0j], [3.0 - 1.0j]) == pytest.approx(1.0)


def test_other_output_names_are_infinitely_far() -> None:
    y = torch.zeros(1)
    assert relative_error([{"y": y}], [{"z": y}]) == INF
    assert relative_error([{"y": y}], [{"y": y, "z": y}]) == INF
    assert relative_error([{"y": y, "z": y}], [{"y": y}]) == INF


def test_a_missing_example_is_a_mistake_of_the_caller() -> None:
    y = {"y": torch.zeros(1)}
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        relative_error([y, y], [y])


def test_all_examples_run_with_the_weights_that_were_given() -> None:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(2.0)
    sandbox = Sandbox(net)
    examples = [Example((torch.tensor([[float(x)]]),)) for x in (1, 3)]
    other = {"weight": torch.full((1, 1), 5.0, dtype=torch.float64)}
    own = [out[""].item() for out in run_all(sandbox, examples)]
    assert own == [2.0, 6.0]
    given = [out[""].item() for out in run_all(sandbox, examples, other)]
    assert given == [5.0, 15.0]
    # The sandbox has its own weights back.
    assert run_all(sandbox, examples)[0][""].item() == 2.0
