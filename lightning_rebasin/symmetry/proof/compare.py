"""Comparing the outputs of one network run with two sets of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_rebasin.symmetry.proof.sandbox import Sandbox
from lightning_rebasin.symmetry.run.examples import Example

#: For every example, its output tensors by path.
Outputs = tuple[dict[str, Tensor], ...]


def relative_error(
    before: Sequence[Mapping[str, Tensor]],
    after: Sequence[Mapping[str, Tensor]],
) -> float:
    """Largest ``max|a − b| / max|a|`` over pairs of tensors; infinite where structure or finiteness differ.

    Example:
        >>> relative_error([{"y": torch.tensor([1.0, 4.0])}], [{"y": torch.tensor([1.0, 3.0])}])
        0.25
    """
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old.keys() != new.keys():
            return float("inf")
        worst = max(
            [worst, *(_tensor_error(old[path], new[path]) for path in old)]
        )
    return worst


def run_all(
    sandbox: Sandbox,
    examples: Sequence[Example],
    state: Mapping[str, Tensor] | None = None,
) -> Outputs:
    """The outputs for every example with some weights."""
    return tuple(sandbox.run(example, state) for example in examples)


def _tensor_error(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape or before.dtype != after.dtype:
        return float("inf")
    if before.numel() == 0:
        return 0.0
    if not (before.is_floating_point() or before.is_complex()):
        return 0.0 if torch.equal(before, after) else float("inf")
    same = (before == after) | (torch.isnan(before) & torch.isnan(after))
    difference = torch.where(same, 0.0, (before - after).abs())
    if not bool(torch.isfinite(difference).all()):
        return float("inf")
    magnitude = before.abs()
    scale = float(torch.where(torch.isfinite(magnitude), magnitude, 0.0).max())
    return float(difference.max()) / (scale or 1.0)
