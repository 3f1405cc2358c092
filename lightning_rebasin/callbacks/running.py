"""One measurement under way: copies of the model and of the batch, between the start and the end of a validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_rebasin.callbacks.alignment import (
    Aligner,
    Alignment,
    share_moved,
)
from lightning_rebasin.callbacks.record import Measurement
from lightning_rebasin.callbacks.trainer import object_gatherer
from lightning_rebasin.landscape.batches import clone_batch, without_repeats
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.geometry import Separation, separation
from lightning_rebasin.landscape.lightning_probe import LightningProbe
from lightning_rebasin.landscape.measure import curve_from_rows
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.points import Point, State
from lightning_rebasin.landscape.probe import Place
from lightning_rebasin.landscape.weights import weights_of


@dataclass(frozen=True)
class Ends:
    """What the running model is compared with, by the label of the curve that leads there.

    Args:
        weights: Both ends of every curve, ``"naive"`` and/or ``"matched"``: the model (its own weights, or for other
            kinds than permutations those in canonical gauge) and what it is compared with.
        separations: Distance and cosine to the reference as it is, and as it was matched.
        alignment: How the reference was matched; ``None`` without matching.
    """

    weights: Mapping[str, tuple[State, State]]
    separations: Mapping[str, Separation]
    alignment: Alignment | None


class Running:
    """A measurement under way.

    Args:
        trainer: The trainer that validates.
        module: The model as validation sees it; it is copied.
        ends: What it is compared with.
        lambdas: Points λ of every curve.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        ends: Ends,
        lambdas: Sequence[float],
    ) -> None:
        self._trainer = trainer
        self._ends = ends
        self._lambdas = lambdas
        self._points, self._lines = lay_out(ends.weights, lambdas)
        self._probe = LightningProbe(module, len(self._points))
        self._batch: Any = None

    def estimate_statistics(self, batches: Sequence[Any]) -> None:
        """Re-estimate the batch-norm statistics at every point; collective.

        Args:
            batches: Training batches.
        """

        def mean(tensor: Tensor) -> Tensor:
            strategy = self._trainer.strategy
            reduced: Tensor = strategy.reduce(tensor, reduce_op="mean")
            return reduced

        context = self._trainer.precision_plugin.val_step_context
        self._probe.estimate_statistics(self._points, batches, context=context)
        self._probe.synchronise_statistics(mean)

    def hold(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Keep a copy of a batch before the module can change it."""
        self._batch = own_copy(self._trainer, batch, batch_idx, dataloader_idx)

    def evaluate(self, place: Place) -> None:
        """Evaluate the batch that is held at every point; nothing if there is none."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        context = self._trainer.precision_plugin.val_step_context
        self._probe.evaluate(self._points, batch, place, context=context)

    def finish(self) -> Measurement:
        """The curves; collective."""
        rows = self._probe.results(object_gatherer(self._trainer))
        better = self._probe.higher_is_better()
        curves = {}
        for label, numbers in self._lines.items():
            curves[label] = curve_from_rows(
                self._lambdas,
                [rows[number] for number in numbers],
                better,
                self._probe.samples,
            )
        alignment = self._ends.alignment
        return Measurement(
            self._trainer.global_step,
            self._trainer.current_epoch,
            curves,
            self._ends.separations,
            share_moved(alignment.transform) if alignment else None,
            alignment.method if alignment else None,
            alignment.scores if alignment else {},
        )


def own_copy(
    trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int
) -> Any | None:
    """A copy of a validation batch without what a distributed sampler repeated; ``None`` if nothing else was in it."""
    loader = trainer.val_dataloaders
    if isinstance(loader, (list, tuple)):
        loader = loader[dataloader_idx]
    # Validation runs in inference mode; tensors made there could not be used by anybody else afterwards.
    with torch.inference_mode(mode=False):
        return without_repeats(clone_batch(batch), batch_idx, loader)


def begin(
    trainer: Trainer,
    module: LightningModule,
    reference: Mapping[str, Tensor],
    lambdas: Sequence[float],
    *,
    aligner: Aligner | None,
    naive: bool,
    batches: Sequence[Any] = (),
) -> Running:
    """Copy the module, match the reference, lay out the points; collective.

    Args:
        trainer: The trainer that validates.
        module: The model as validation sees it.
        reference: The weights to compare with.
        lambdas: Points λ of every curve.
        aligner: Matches the reference to the model; ``None`` for no matched curve.
        naive: Whether there is a curve to the reference as it is.
        batches: Training batches to compare activations and to re-estimate batch-norm statistics on; none keeps the
            interpolated ones.
    """
    # See own_copy for the inference mode.
    with torch.inference_mode(mode=False), torch.no_grad(), isolated_rng():
        live = weights_of(module)
        other = {
            name: reference[name].to(tensor.device, tensor.dtype)
            for name, tensor in live.items()
        }
        ends = _ends(
            trainer, module, other, aligner, naive=naive, batches=batches
        )
        running = Running(trainer, module, ends, lambdas)
        if batches:
            running.estimate_statistics(batches)
    return running


def _ends(
    trainer: Trainer,
    module: LightningModule,
    reference: Mapping[str, Tensor],
    aligner: Aligner | None,
    *,
    naive: bool,
    batches: Sequence[Any],
) -> Ends:
    """The reference as it is, and as it is matched, each only if asked for."""
    live = weights_of(module)
    # Running statistics are not directions in weight space: only parameters count.
    parameters = [
        name for name, _ in module.named_parameters() if name in live
    ]
    weights: dict[str, tuple[State, State]] = {}
    separations = {"naive": separation(live, reference, parameters)}
    alignment = None
    if naive:
        weights["naive"] = (live, reference)
    if aligner is not None:
        alignment = aligner.align(trainer, module, reference, batches)
        matched = alignment.transform.apply(reference)
        weights["matched"] = (alignment.model, matched)
        separations["matched"] = separation(
            alignment.model, matched, parameters
        )
    return Ends(weights, separations, alignment)


def lay_out(
    ends: Mapping[str, tuple[State, State]], lambdas: Sequence[float]
) -> tuple[list[Point], dict[str, list[int]]]:
    """The points to evaluate and, for each curve, which of them are its own.

    λ = 0 is evaluated once: on all curves it is the model, if perhaps in another gauge.

    Example:
        >>> a, b, c = ({"w": torch.full((1,), float(i))} for i in range(3))
        >>> points, lines = lay_out({"naive": (a, b), "matched": (a, c)}, (0.0, 0.5, 1.0))
        >>> len(points), lines
        (5, {'naive': [0, 1, 2], 'matched': [0, 3, 4]})
    """
    points: list[Point] = []
    lines: dict[str, list[int]] = {}
    for label, (model, end) in ends.items():
        own = []
        for lam in lambdas:
            if lam == 0.0 and points:
                own.append(0)
                continue
            own.append(len(points))
            points.append(Line(model, end).at(lam))
        lines[label] = own
    return points, lines
