"""Which permutation or other symmetry to keep: candidates met during training, scored on held-out data.

The loss of one minibatch is too noisy to choose by.  It only decides who is *short-listed*: the permutation that
training started from, the one with the lowest minibatch loss since the last validation, and the current one.  Each of
them is then scored on the whole held-out set, and the best score ever seen wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from lightning_rebasin.landscape.accumulate import Average
from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.merging.statistics import (
    averaging,
    batch_norms,
    statistics_of,
)
from lightning_rebasin.modules.inner import InnerModel, LossOfWeights
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@final
@dataclass(frozen=True, eq=False)
class Candidate:
    """A symmetry of the source, its held-out loss, and the running statistics that its midpoint was scored with.

    Args:
        transform: Brings the source near to the reference.
        score: Mean held-out loss of the midpoint; infinite before it is scored.
        statistics: Re-estimated batch-norm buffers of the midpoint by name; empty without batch norm.
    """

    transform: Transform
    score: float = math.inf
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """Tensors and numbers that load with ``weights_only=True``."""
        return {
            "orders": dict(self.transform.elements),
            "score": self.score,
            "statistics": {
                name: tensor.clone()
                for name, tensor in self.statistics.items()
            },
        }

    @classmethod
    def from_state(
        cls, spec: PermutationSpec, state: Mapping[str, Any]
    ) -> Candidate:
        """Inverse of :meth:`to_state`.

        Raises:
            TransformError: The stored elements do not fit the spec.
        """
        return cls(
            Transform.of(spec, state["orders"]),
            state["score"],
            state["statistics"],
        )


@final
class Shortlist:
    """Collects candidates between two validations."""

    def __init__(self) -> None:
        self._starts: list[Transform] = []
        self._lowest: Transform | None = None
        self._lowest_loss = math.inf

    def start_from(self, *transforms: Transform) -> None:
        """Remember where training could start: plain matching is always among the candidates."""
        self._starts = list(transforms)

    def also_from(self, transform: Transform) -> None:
        """Add one: the first projection of the straight-through estimator is plain matching, too."""
        self._starts.append(transform)

    def offer(self, transform: Transform, loss: float) -> None:
        """Consider the transform of one training step by its minibatch loss."""
        if loss < self._lowest_loss:
            self._lowest, self._lowest_loss = transform, loss

    def candidates(self, current: Transform) -> list[Transform]:
        """The short list without repetitions, the current transform first."""
        found = [current]
        for transform in (self._lowest, *self._starts):
            if transform is not None and all(
                transform != other for other in found
            ):
                found.append(transform)
        return found

    def clear(self) -> None:
        """Begin a new list after a validation."""
        self._starts = []
        self._lowest = None
        self._lowest_loss = math.inf


@final
class Score:
    """The held-out loss of one candidate, accumulated batch by batch.

    Args:
        candidate: Who is scored.
        weights: Its midpoint: parameters and buffers, batch-norm statistics included.
    """

    def __init__(
        self, candidate: Candidate, weights: Mapping[str, Tensor]
    ) -> None:
        self._candidate = candidate
        self._weights = weights
        self._loss = Average("mean")

    def update(self, loss: LossOfWeights, batch: Any) -> None:
        """Add one batch; every candidate sees the same random numbers, and training sees none of them.

        Args:
            loss: The loss of the batch at any weights.
            batch: The batch.
        """
        with isolated_rng():
            value = loss(self._weights)
        self._loss.update(value, batch_size(batch))

    def finish(self, total: Callable[[Tensor], Tensor]) -> Candidate:
        """The candidate with its score.

        Args:
            total: Sums a tensor over all processes; called once.
        """
        sums = total(
            torch.tensor(
                [float(self._loss.total), self._loss.weight],
                dtype=torch.float64,
            )
        )
        mean = float(sums[0] / sums[1])
        return replace(
            self._candidate, score=math.inf if math.isnan(mean) else mean
        )


def estimate_statistics(
    inner: InnerModel, weights: Mapping[str, Tensor], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Batch-norm statistics of a network at other weights: cumulative averages over ``batches``.

    Args:
        inner: The network in eval mode; its own statistics are overwritten.
        weights: Parameters and buffers of the point.
        batches: Training batches on the network's device.

    Returns:
        The re-estimated buffers by name; empty without batch norm or without batches.
    """
    norms = batch_norms(inner.model)
    batches = list(batches)
    if not norms or not batches:
        return {}
    own = statistics_of(norms)
    rest = {
        name: tensor for name, tensor in weights.items() if name not in own
    }
    with torch.no_grad(), averaging(norms.values()):
        for index, batch in enumerate(batches):
            with isolated_rng():
                inner.loss_at(rest, batch, index)
    return statistics_of(norms)


def changed_fraction(before: Transform, after: Transform) -> float:
    """Fraction of all units that two transforms send to different places."""
    pairs = [
        (before.flat(group), after.flat(group)) for group in after.elements
    ]
    moved = sum(int((old != new).sum()) for old, new in pairs)
    return moved / max(sum(len(new) for _, new in pairs), 1)
