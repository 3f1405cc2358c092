"""The loss along the segment between two sets of weights, and the height of the bump on it.

A :class:`BarrierCurve` is a table: values of one or more metrics at points λ of the segment
``θ(λ) = (1 − λ) θ_a + λ θ_b``.  The *barrier* is how much worse the worst point is than what the ends promise.  Two
conventions are in use, so a report must name its own:

- ``"mean"``: ``max_λ L(λ) − ½ (L(0) + L(1))``  (Git Re-Basin, Definition 2.2)
- ``"chord"``: ``max_λ [L(λ) − ((1 − λ) L(0) + λ L(1))]``  (Entezari et al. 2022)

For a metric where larger is better the signs are turned round, so that a barrier is never negative: both ends belong to
every grid.  The midpoint belongs to it too: it is where the barrier usually is.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.files import atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-barrier"
#: How the ends are subtracted from the worst point.
Convention = Literal["mean", "chord"]
_HIGHER_IS_BETTER = frozenset({
    "acc", "accuracy", "auc", "auroc", "auprc", "ap", "map", "f1", "fbeta", "precision", "recall", "specificity",
    "sensitivity", "iou", "jaccard", "dice", "kappa", "mcc", "matthews", "top1", "top5", "r2", "pearson", "spearman",
    "psnr", "ssim", "bleu", "rouge",
})  # fmt: skip


@dataclass(frozen=True, repr=False)
class BarrierCurve:
    """Metrics at points of the segment between two sets of weights.

    Args:
        lambdas: Points λ in ``[0, 1]``, ascending; 0 and 1 are the first and the last.
        values: For each metric one value per λ.
        higher_is_better: Metrics for which larger is better; those left out are guessed from their names
            (``"val_acc"`` yes, ``"val_loss"`` no).
        samples: How many samples every value averages over; 0 if unknown.

    Raises:
        DataError: The ends are missing, or a metric has another number of values than there are λ.

    Example:
        >>> curve = BarrierCurve((0.0, 0.5, 1.0), {"loss": (0.1, 0.9, 0.3), "acc": (0.9, 0.6, 0.8)})
        >>> round(curve.height("loss"), 3), curve.at("loss")
        (0.7, 0.5)
        >>> round(curve.height("acc"), 3)
        0.25

    References:
        Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023, Def. 2.2.
    """

    lambdas: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    samples: int = 0

    def __post_init__(self) -> None:
        lambdas = tuple(float(lam) for lam in self.lambdas)
        ascending = list(lambdas) == sorted(set(lambdas))
        ends = lambdas[:1] + lambdas[-1:]
        if ends != (0.0, 1.0) or not ascending:
            raise DataError(
                f"a barrier curve needs ascending λ from 0 to 1, got {lambdas}"
            )
        values = {}
        better = {}
        for name, row in self.values.items():
            if len(row) != len(lambdas):
                raise DataError(
                    f"metric {name!r} has {len(row)} values for {len(lambdas)} points λ"
                )
            values[name] = tuple(float(v) for v in row)
            known = self.higher_is_better.get(name, is_higher_better(name))
            better[name] = bool(known)
        object.__setattr__(self, "lambdas", lambdas)
        object.__setattr__(self, "values", MappingProxyType(values))
        object.__setattr__(self, "higher_is_better", MappingProxyType(better))

    def height(self, name: str, convention: Convention = "mean") -> float:
        """How much worse the worst point is than the ends.

        Args:
            name: A metric of the curve.
            convention: ``"mean"`` subtracts the mean of the ends (Git Re-Basin), ``"chord"`` their interpolation at
                the same λ.

        Returns:
            The barrier, never negative; NaN if a value is NaN.

        Raises:
            DataError: The curve has no such metric.
            ConfigurationError: The convention is unknown.
        """
        return max(self._excess(name, convention), key=_nan_first)

    def at(self, name: str, convention: Convention = "mean") -> float:
        """The λ of the worst point: where :meth:`height` is reached first."""
        excess = self._excess(name, convention)
        return self.lambdas[excess.index(max(excess, key=_nan_first))]

    def midpoint(self, name: str) -> float:
        """The value at λ = ½.

        Raises:
            DataError: The curve has no such metric, or no such point.
        """
        if 0.5 not in self.lambdas:
            raise DataError("λ = 0.5 is not on the grid of this curve")
        return self._row(name)[self.lambdas.index(0.5)]

    def plot(
        self, path: str | Path | None = None, **others: BarrierCurve
    ) -> Figure:
        """Draw the curve, together with ``others`` by label; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            **others: More curves, for instance ``matched=...``.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_barriers

        return plot_barriers(
            {"naive" if others else "": self, **others}, path=path
        )

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain JSON values."""
        return {
            "format": FORMAT,
            "lambdas": list(self.lambdas),
            "values": {name: list(row) for name, row in self.values.items()},
            "higher_is_better": dict(self.higher_is_better),
            "samples": self.samples,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BarrierCurve:
        """Inverse of :meth:`to_dict`.

        Raises:
            DataError: ``data`` is not a barrier curve.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise DataError(
                f"this is not a barrier curve (no 'format': {FORMAT!r})"
            )
        try:
            rows = {name: tuple(row) for name, row in data["values"].items()}
            return cls(
                tuple(data["lambdas"]),
                rows,
                data["higher_is_better"],
                int(data["samples"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"malformed barrier curve: {error!r}") from error

    def to_json(self, path: str | Path) -> None:
        """Write the curve as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        atomic_write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> BarrierCurve:
        """Read a curve written by :meth:`to_json`.

        Raises:
            DataError: The file is missing or is not a barrier curve.
        """
        try:
            return cls.from_dict(
                json.loads(Path(path).read_text(encoding="utf-8"))
            )
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                f"cannot read a barrier curve from {path}: {error}"
            ) from error

    def to_csv(self, path: str | Path) -> None:
        """Write one row per λ and one column per metric, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["lambda", *self.values])
        writer.writerows(zip(self.lambdas, *self.values.values(), strict=True))
        atomic_write_text(path, text.getvalue())

    def __repr__(self) -> str:
        heights = ", ".join(
            f"{name} {self.height(name):.4g} at λ={self.at(name):.2f}"
            for name in self.values
        )
        return f"BarrierCurve({len(self.lambdas)} points, {self.samples} samples; barriers (mean): {heights or 'none'})"

    def _row(self, name: str) -> tuple[float, ...]:
        if name not in self.values:
            raise DataError(
                f"the curve has no metric {name!r}; it has {', '.join(map(repr, self.values)) or 'none'}"
            )
        return self.values[name]

    def _excess(self, name: str, convention: Convention) -> list[float]:
        """How much worse every point is than what the ends promise there."""
        row = self._row(name)
        sign = -1.0 if self.higher_is_better[name] else 1.0
        first, last = row[0], row[-1]
        if convention == "mean":
            promised = [0.5 * (first + last)] * len(row)
        elif convention == "chord":
            # Written so that both ends come out exact: a curve that is its own chord has barrier 0, not 1e-17.
            ends = {0: first, len(row) - 1: last}
            promised = [
                ends.get(i, (1 - lam) * first + lam * last)
                for i, lam in enumerate(self.lambdas)
            ]
        else:
            raise ConfigurationError(
                f"convention {convention!r} is unknown; choose 'mean' or 'chord'"
            )
        return [
            sign * (value - base)
            for value, base in zip(row, promised, strict=True)
        ]


def lambda_grid(points: int | Sequence[float]) -> tuple[float, ...]:
    """Points λ of a barrier: ascending, with both ends and the midpoint.

    Args:
        points: A number of evenly spaced points (at least 2), or the points themselves in ``[0, 1]``.  0, ½ and 1 are
            added where they are missing.

    Returns:
        The grid.

    Raises:
        ConfigurationError: Fewer than two points, or a point outside ``[0, 1]``.

    Example:
        >>> lambda_grid(4)
        (0.0, 0.3333333333333333, 0.5, 0.6666666666666666, 1.0)
        >>> lambda_grid([0.1])
        (0.0, 0.1, 0.5, 1.0)
    """
    if isinstance(points, bool) or (isinstance(points, int) and points < 2):
        raise ConfigurationError(
            f"points={points!r}: a barrier needs at least the two ends, so 2 or more points"
        )
    inner = (
        [i / (points - 1) for i in range(points)]
        if isinstance(points, int)
        else [float(p) for p in points]
    )
    wrong = [lam for lam in inner if not 0.0 <= lam <= 1.0]
    if wrong:
        raise ConfigurationError(f"points: λ = {wrong[0]} lies outside [0, 1]")
    return tuple(sorted({0.0, 0.5, 1.0, *inner}))


def is_higher_better(name: str) -> bool:
    """Guess from a metric's name whether larger is better.

    Example:
        >>> is_higher_better("val/acc_top1"), is_higher_better("val_loss"), is_higher_better("MulticlassAUROC")
        (True, False, True)
    """
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", name)
    return any(word.lower() in _HIGHER_IS_BETTER for word in words)


def _nan_first(value: float) -> float:
    """Sort key under which NaN is the largest, so that a broken curve never looks flat."""
    return math.inf if math.isnan(value) else value
