"""One validation of a MergeModule: every candidate's midpoint is scored on the same held-out batches.

What wins is kept as long as nothing better comes: the best score ever seen decides, not the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.modules.candidates import (
    Candidate,
    Score,
    Shortlist,
    estimate_statistics,
)
from lightning_rebasin.modules.midpoint_loss import MidpointLoss
from lightning_rebasin.symmetry.actions.transform import Transform

#: Sums or averages a tensor over all processes.
Reduce = Callable[[Tensor], Tensor]


@final
class Scoring:
    """Scores candidates, and remembers the best one.

    Args:
        loss: The loss at a point.
        lam: Where on the segment the loss is taken.
    """

    def __init__(self, loss: MidpointLoss, lam: float) -> None:
        self._loss = loss
        self._lam = lam
        self._scores: list[Score] = []
        self.shortlist = Shortlist()
        #: The best candidate of all validations so far.
        self.best: Candidate | None = None

    def begin(
        self, now: Transform, recent: Iterable[Any], mean: Reduce
    ) -> None:
        """Prepare the midpoint of every candidate; collective.

        Args:
            now: The current transform.
            recent: Training batches on which batch-norm statistics are estimated.
            mean: The mean of a tensor over processes.
        """
        self._scores = []
        recent = list(recent)
        ends = self._loss.ends
        # Tensors made under the trainer's inference mode could not be trained with later.
        with torch.inference_mode(mode=False), torch.no_grad():
            for transform in self.shortlist.candidates(now):
                weights = ends.midpoint(transform, self._lam)
                statistics = estimate_statistics(
                    self._loss.inner, ends.callable_weights(weights), recent
                )
                for name, tensor in statistics.items():
                    if tensor.is_floating_point():
                        statistics[name] = mean(tensor)
                candidate = Candidate(transform, statistics=statistics)
                own = ends.callable_weights(weights | statistics)
                self._scores.append(Score(candidate, own))

    def update(self, batch: Any, batch_idx: int) -> None:
        """Add one held-out batch to the score of every candidate; all see the same random numbers."""
        with isolated_rng():
            loss = self._loss.of(batch, batch_idx, self._lam)
        for score in self._scores:
            score.update(loss, batch)

    def finish(self, total: Reduce) -> list[Candidate]:
        """The scored candidates, the current one first; collective.

        Args:
            total: The sum of a tensor over processes.
        """
        scored = [score.finish(total) for score in self._scores]
        self._scores = []
        return scored

    def keep(self, scored: list[Candidate]) -> Candidate:
        """Keep the best of these and of those before, and begin a new list.

        Args:
            scored: What :meth:`finish` returned.

        Returns:
            The best one.
        """
        self.shortlist.clear()
        known = [self.best] if self.best is not None else []
        self.best = min(
            [*known, *scored], key=lambda candidate: candidate.score
        )
        return self.best
