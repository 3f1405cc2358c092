"""What a refit has to beat: simpler ways to merge the same aligned ends, judged on the same held-out samples.

They take a small part of the time of a refit, and their scores say which of several alignments deserves one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, final

from torch import Tensor

from lightning_rebasin.merging.interpolate import (
    average,
    check_alike,
    normalised_weights,
)
from lightning_rebasin.merging.processes import (
    Total,
    alone,
    device_of,
    total_number,
)
from lightning_rebasin.merging.refit.batches import Batches
from lightning_rebasin.merging.refit.choose import Loss, distances, losses
from lightning_rebasin.merging.refit.fitting import Ends
from lightning_rebasin.merging.refit.report import Criterion, Method
from lightning_rebasin.merging.repair import repair
from lightning_rebasin.merging.statistics import (
    Module,
    batch_norms,
    copied,
    reset_batch_norm,
)

#: Samples that REPAIR gets while it is only a candidate.
_REPAIR_SAMPLES = 512


@final
class Contest(Generic[Module]):
    """Ways to merge the same aligned ends.

    Args:
        module: The architecture; it is copied.
        states: Aligned weights of the ends.
        batches: As for :func:`~lightning_rebasin.refit`.
        shares: Share of each end; equal for ``None``.
        loss: Judges instead of the distance to the ends' mean outputs.
        total: Sums a tensor over processes.
    """

    def __init__(
        self,
        module: Module,
        states: Sequence[Mapping[str, Tensor]],
        batches: Iterable[Any],
        *,
        shares: Sequence[float] | None,
        loss: Loss | None,
        total: Total = alone,
    ) -> None:
        self._loss = loss
        self._states = states
        self._shares = normalised_weights(len(states), shares)
        self._scores: dict[Method, float] = {}
        self.total = total
        self.naive = copied(module)
        own = self.naive.state_dict()
        names = [f"model {i + 1}" for i in range(len(states))]
        check_alike((own, *states), ("the module", *names))
        self.everything = Batches(batches)
        self.fitted_part = self.everything.part("fit")
        self.held_out = self.everything.part("held out")
        parts = (self.fitted_part, self.held_out)
        lacking = any(not part.samples for part in parts)
        if total_number(total, lacking, device_of(self.naive)):
            # Too few to judge, in one process at least: what was fitted has to judge itself.
            self.fitted_part = self.held_out = self.everything
        self.ends = Ends(copy.deepcopy(self.naive), states, self._shares)
        self.naive.load_state_dict(average(states, self._shares))

    @property
    def criterion(self) -> Criterion:
        """What the scores are."""
        return "distance" if self._loss is None else "loss"

    def samples(self) -> tuple[int, int]:
        """How many samples are fitted, and how many are held out."""
        device = device_of(self.naive)
        fitted, held_out = (
            round(total_number(self.total, part.samples, device))
            for part in (self.fitted_part, self.held_out)
        )
        return fitted, held_out

    def rival_scores(self) -> dict[Method, float]:
        """Score of the average as it is, reset, and repaired; lower is better.  They are made only once."""
        if not self._scores:
            self._scores = self._judged(dict(self._rivals()))
        return dict(self._scores)

    def scores_with(self, merged: Module) -> dict[Method, float]:
        """The same, and the score of a refitted network."""
        return self.rival_scores() | self._judged({"refit": merged})

    def made(self, method: Method) -> Module:
        """One of the rivals; REPAIR, which competed on few samples, is done on all."""
        if method == "repair":
            return self._repaired(self.fitted_part)
        return self._reset() if method == "reset" else self.naive

    def _rivals(self) -> Iterator[tuple[Method, Module]]:
        yield "naive", self.naive
        if batch_norms(self.naive):
            yield "reset", self._reset()
        few = self.fitted_part.first(_REPAIR_SAMPLES)
        yield "repair", self._repaired(few)

    def _judged(
        self, candidates: Mapping[Method, Module]
    ) -> dict[Method, float]:
        """Score of each candidate on the held-out samples."""
        if self._loss is None:
            return distances(
                candidates, self.held_out, self.ends, total=self.total
            )
        return losses(candidates, self.held_out, self._loss, total=self.total)

    def _reset(self) -> Module:
        return reset_batch_norm(self.naive, self.fitted_part, total=self.total)

    def _repaired(self, batches: Iterable[Any]) -> Module:
        return repair(
            self.naive,
            self._states,
            batches,
            weights=self._shares,
            total=self.total,
        ).module
