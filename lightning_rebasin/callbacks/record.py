"""What one measurement found, and the CSV beside the logs that it is written to."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning_rebasin.errors import BarrierWarning, OutputError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.landscape.barrier import BarrierCurve, Convention
from lightning_rebasin.landscape.geometry import Separation
from lightning_rebasin.landscape.pair import METHODS

_OLD_HEADER = ("step", "epoch", "curve", "lambda", "metric", "value")
_HEADER = (*_OLD_HEADER, "matching")


@dataclass(frozen=True)
class Measurement:
    """One measurement of a LossBarrier.

    Args:
        step: Optimizer steps taken.
        epoch: The epoch, from 0.
        curves: ``"naive"`` and/or ``"matched"``.
        separations: Distance and cosine to the reference: ``"naive"``, and ``"matched"`` if matched.
        moved: Fraction of the units that the matching moves; ``None`` without matching.
        matching: How the reference was matched: ``"weight"``, ``"activation"`` or ``"correlation"``.
        scores: If several ways competed, the distance of the midpoint of each; the lowest one won.
    """

    step: int
    epoch: int
    curves: Mapping[str, BarrierCurve]
    separations: Mapping[str, Separation]
    moved: float | None = None
    matching: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def main_metric(self) -> str:
        """The first loss, or the first metric if there is none; empty if nothing was measured."""
        names = [
            name for curve in self.curves.values() for name in curve.values
        ]
        losses = [name for name in names if "loss" in name]
        return next(iter([*losses, *names]), "")

    def selected(self, metrics: Sequence[str]) -> Measurement:
        """The same with some metrics only; warns of those that were not measured.

        Args:
            metrics: What to keep, in this order.
        """
        curves = {}
        for label, curve in self.curves.items():
            kept = {n: curve.values[n] for n in metrics if n in curve.values}
            unknown = [name for name in metrics if name not in kept]
            if unknown:
                known = ", ".join(map(repr, curve.values))
                warnings.warn(
                    f"LossBarrier: validation_step does not log {unknown[0]!r}; it logs {known}",
                    BarrierWarning,
                    stacklevel=2,
                )
            curves[label] = BarrierCurve(
                curve.lambdas, kept, curve.higher_is_better, curve.samples
            )
        return replace(self, curves=curves)

    def scalars(self, prefix: str, convention: Convention) -> dict[str, float]:
        """Everything that is logged, by name: ``<prefix>/<metric>[/matched][/at]``, distance, cosine and so on."""
        numbers: dict[str, float] = {}
        for label, curve in self.curves.items():
            for metric in curve.values:
                name = f"{prefix}/{metric}{_SUFFIX[label]}"
                numbers[name] = curve.height(metric, convention)
                numbers[f"{name}/at"] = curve.at(metric, convention)
        for label, separation in self.separations.items():
            numbers[f"{prefix}/distance{_SUFFIX[label]}"] = separation.distance
            numbers[f"{prefix}/cosine{_SUFFIX[label]}"] = separation.cosine
        if self.moved is not None:
            numbers[f"{prefix}/moved"] = self.moved
        if self.matching is not None and self.scores:
            # Loggers take numbers only.
            numbers[f"{prefix}/matching"] = METHODS.index(self.matching)
        for method, score in self.scores.items():
            numbers[f"{prefix}/matching/{method}"] = score
        return numbers

    def rows(self) -> list[tuple[str, ...]]:
        """One row per curve, λ and metric."""
        found: list[tuple[str, ...]] = []
        when = (str(self.step), str(self.epoch))
        for label, curve in self.curves.items():
            how = (self.matching or "") if label == "matched" else ""
            for metric, values in curve.values.items():
                for lam, value in zip(curve.lambdas, values, strict=True):
                    row = (*when, label, repr(lam), metric, repr(value))
                    found.append((*row, how))
        return found


_SUFFIX = {"naive": "", "matched": "/matched"}


def append_csv(path: Path, measurement: Measurement) -> None:
    """Add the curves of a measurement to a CSV file, atomically.

    Rows of the same or a later step are replaced: they were written by a run that was interrupted and resumed before
    that step.

    Raises:
        OutputError: The folder cannot be written, or the file is something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[Sequence[str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if tuple(header) not in (_HEADER, _OLD_HEADER):
            raise OutputError(
                f"{path} was not written by LossBarrier; move it away"
            )
        # An older version did not say how it matched.
        new = [""] * (len(_HEADER) - len(header))
        kept = [[*r, *new] for r in rows if int(r[0]) < measurement.step]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_HEADER, *kept, *measurement.rows()])
    atomic_write_text(path, text.getvalue())
