"""Biases that an attention cancels or passes on, as values, and weights without them.

What is added to every key adds the same number to all scores of a query, and a softmax does not see it.  The rows of an
attention sum to 1, so what is added to every value comes out as it went in, and the map behind it may add it instead:

    ``W_o (Σ_t a_t (v_t + b_v)) + b_o  =  W_o (Σ_t a_t v_t) + (b_o + W_o b_v)``
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class PassedBias:
    """Entries of a bias that are 0 in canonical gauge.

    Args:
        bias: Name of the bias; a packed one has entries of other kinds beside.
        entries: Which entries; if a weight reads them, one for each of its inputs (grouped queries repeat them).
        weight: The weight that reads what the attention passes on; empty if the softmax cancels it.
        dim: The dimension of the weight's inputs.
        into: The bias to which the result goes.
    """

    bias: str
    entries: tuple[int, ...]
    weight: str = ""
    dim: int = 1
    into: str = ""

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors that it speaks of."""
        return tuple(n for n in (self.bias, self.weight, self.into) if n)


def without_bias(
    one: PassedBias, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that change, in float64.

    Args:
        one: Which entries.
        state: Weights.

    Example:
        >>> state = {"v": torch.tensor([1.0, 2.0]), "w": torch.ones(1, 2), "o": torch.zeros(1)}
        >>> without_bias(PassedBias("v", (0, 1), "w", 1, "o"), state)["o"]
        tensor([3.], dtype=torch.float64)
    """
    entries = torch.tensor(one.entries, device=state[one.bias].device)
    bias = state[one.bias].double()
    changed = {one.bias: bias.index_fill(0, entries, 0.0)}
    if one.weight:
        weight = state[one.weight].double().movedim(one.dim, 1)
        given = weight @ bias[entries]
        changed[one.into] = state[one.into].double() + given
    return changed


def biases_to_list(biases: tuple[PassedBias, ...]) -> list[dict[str, Any]]:
    """Plain JSON values."""
    found = []
    for one in biases:
        entry = asdict(one)
        entry["entries"] = list(one.entries)
        found.append(entry)
    return found


def biases_from_list(data: list[Mapping[str, Any]]) -> tuple[PassedBias, ...]:
    """Inverse of :func:`biases_to_list`; whatever is wrong raises some exception."""
    found = []
    for entry in data:
        entries = tuple(int(number) for number in entry["entries"])
        names = {name: str(entry[name]) for name in ("bias", "weight", "into")}
        found.append(
            PassedBias(entries=entries, dim=int(entry["dim"]), **names)
        )
    return tuple(found)


def fault_of(one: PassedBias, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong with a bias for tensors of these shapes; empty if nothing is."""
    for name in one.tensors:
        if name not in shapes:
            return f"the gauge names {name!r}, which the spec does not have"
    shape = shapes[one.bias]
    inside = all(0 <= entry < math.prod(shape) for entry in one.entries)
    if len(shape) != 1 or not inside:
        return (
            f"the gauge names entries that the bias {one.bias!r} does not have"
        )
    if not one.weight:
        return ""
    weight = shapes[one.weight]
    if len(weight) != 2 or one.dim not in (0, 1):
        return f"{one.weight!r} is no matrix that reads {one.bias!r}"
    fits = weight[one.dim] == len(one.entries)
    if not fits or shapes.get(one.into) != (weight[1 - one.dim],):
        return f"{one.bias!r} and {one.into!r} do not fit {one.weight!r}"
    return ""
