"""The values of metrics along one direction, and their bumps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import is_higher_better
from lightning_rebasin.landscape.tables import (
    main_metric,
    read_json,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-loss-profile"


class Bump(NamedTuple):
    """A stretch along which a metric gets worse.

    Args:
        start: Where it begins: a local best.
        peak: Where it ends: the local worst that follows.
        height: How much worse the metric gets.
    """

    start: float
    peak: float
    height: float


@dataclass(frozen=True, repr=False)
class LossProfile:
    """Metrics at places along a line.

    Args:
        alphas: Places, ascending.
        values: For each metric one value per place.
        higher_is_better: Metrics for which larger is better.
        samples: How many samples every value averages over.

    Raises:
        DataError: The places do not ascend, or a metric has another number of values.

    Example:
        >>> profile = LossProfile((0.0, 0.25, 0.5, 0.75, 1.0), {"loss": (2.0, 2.5, 1.0, 1.25, 0.0)})
        >>> profile.bumps("loss")
        (Bump(start=0.0, peak=0.25, height=0.5), Bump(start=0.5, peak=0.75, height=0.25))
        >>> profile.bump("loss"), profile.is_monotone("loss")
        (0.5, False)
    """

    alphas: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    samples: int = 0

    def __post_init__(self) -> None:
        if list(self.alphas) != sorted(set(self.alphas)):
            raise DataError(f"places must ascend, got {self.alphas}")
        better = {}
        for name, row in self.values.items():
            if len(row) != len(self.alphas):
                raise DataError(
                    f"metric {name!r} has {len(row)} values for {len(self.alphas)} places"
                )
            known = self.higher_is_better.get(name, is_higher_better(name))
            better[name] = bool(known)
        object.__setattr__(self, "higher_is_better", better)

    def bump(self, name: str) -> float:
        """How far a metric is from improving monotonically: ``max_{i ≤ j} L(α_j) − L(α_i)``, 0 if it does.

        It is the smallest Δ for which the interpolation is Δ-monotonic (Lucas et al. 2021).

        Raises:
            DataError: The profile has no such metric.
        """
        best, rise = math.inf, 0.0
        for value in self._losses(name):
            if math.isnan(value):
                return math.nan
            best = min(best, value)
            rise = max(rise, value - best)
        return rise

    def bumps(self, name: str) -> tuple[Bump, ...]:
        """Every stretch along which a metric gets worse, in order.

        Raises:
            DataError: The profile has no such metric.
        """
        row = self._losses(name)
        found = []
        start = 0
        for k in range(1, len(row) + 1):
            if k < len(row) and row[k] >= row[k - 1]:
                continue
            if row[k - 1] > row[start]:
                # A flat stretch before the rise does not belong to it.
                while row[start + 1] == row[start]:
                    start += 1
                found.append(self._bump(row, start, k - 1))
            start = k
        return tuple(found)

    def is_monotone(self, name: str, tolerance: float = 0.0) -> bool:
        """Whether a metric nowhere gets worse by more than ``tolerance``."""
        return self.bump(name) <= tolerance

    def plot(
        self,
        path: str | Path | None = None,
        metric: str | None = None,
        **others: LossProfile,
    ) -> Figure:
        """Draw the profile, together with ``others`` by label; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            metric: Draw this metric only.
            **others: More profiles.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_profiles

        label = "this" if others else ""
        return plot_profiles({label: self, **others}, metric, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per place, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        rows = zip(self.alphas, *self.values.values(), strict=True)
        write_csv(path, ["alpha", *self.values], rows)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        write_json(path, {"format": FORMAT, **vars(self)})

    @classmethod
    def from_json(cls, path: str | Path) -> LossProfile:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or is not a profile.
        """
        data = read_json(path, FORMAT)
        try:
            rows = {name: tuple(row) for name, row in data["values"].items()}
            better, samples = data["higher_is_better"], data["samples"]
            return cls(tuple(data["alphas"]), rows, better, samples)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"malformed profile in {path}: {error!r}"
            ) from error

    def __repr__(self) -> str:
        parts = []
        for name in self.values:
            parts.append(f"{name} {self.bump(name):.4g}")
        return f"LossProfile({len(self.alphas)} points, {self.samples} samples; bumps: {', '.join(parts) or 'none'})"

    def _bump(self, row: Sequence[float], start: int, peak: int) -> Bump:
        height = row[peak] - row[start]
        return Bump(self.alphas[start], self.alphas[peak], height)

    def _losses(self, name: str) -> list[float]:
        """The values, turned round where larger is better."""
        row = self.values[main_metric(self.values, name)]
        return [-v for v in row] if self.higher_is_better[name] else list(row)
