"""What came out of a geodesic: the chain with its falling energy, and how far outputs travel along a path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.paths.polygon import Polygon
from lightning_rebasin.landscape.tables import (
    read_json,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-geodesic-length"
CHAIN_FORMAT = "lightning-rebasin-geodesic"


@dataclass(frozen=True)
class Geodesic:
    """A chain of networks, and how its energy fell.

    Args:
        path: The chain; its anchors are the networks, the first and the last of which are the ends.
        energies: ``Σ_k JS_k`` on the batch of every step.
    """

    path: Polygon
    energies: tuple[float, ...]

    def plot(
        self, path: str | Path | None = None, **others: Geodesic
    ) -> Figure:
        """Draw the energy over the steps, together with ``others`` by label; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            **others: More chains, for instance ``matched=...``.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_energies

        label = "naive" if others else ""
        return plot_energies({label: self, **others}, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per step, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        write_csv(path, ["step", "energy"], list(enumerate(self.energies)))

    def to_json(self, path: str | Path) -> None:
        """Write the energies, atomically; networks belong in checkpoints (:func:`~lightning_rebasin.write_checkpoint`).

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        content = {
            "format": CHAIN_FORMAT,
            "networks": len(self.path.anchors),
            "energies": self.energies,
        }
        write_json(path, content)

    def __repr__(self) -> str:
        fell = f"{self.energies[0]:.4g} to {self.energies[-1]:.4g}"
        return f"Geodesic({len(self.path.anchors)} networks, energy {fell} in {len(self.energies)} steps)"


@dataclass(frozen=True)
class GeodesicLength:
    """Jensen–Shannon divergences of consecutive outputs along a path.

    Args:
        ts: Where the outputs were compared.
        divergences: JS between each and the next, averaged over samples, in nats.
        ends: JS between the first and the last.
        samples: Over how many samples.

    Example:
        >>> length = GeodesicLength((0.0, 0.5, 1.0), (0.02, 0.02), 0.02)
        >>> round(length.energy, 9), round(length.length, 9), round(length.normalised_length, 9)
        (0.04, 0.8, 2.0)
    """

    ts: tuple[float, ...]
    divergences: tuple[float, ...]
    ends: float
    samples: int = 0

    @property
    def energy(self) -> float:
        """``Σ_k JS_k``: what a geodesic makes small.  It shrinks with finer steps; the length does not."""
        return math.fsum(self.divergences)

    @property
    def steps(self) -> tuple[float, ...]:
        """``√(8·JS_k)``: the length of each step."""
        return tuple(math.sqrt(8.0 * js) for js in self.divergences)

    @property
    def length(self) -> float:
        """``Σ_k √(8·JS_k)``, the length of Fisher and Rao where the steps are fine."""
        return math.fsum(self.steps)

    @property
    def normalised_length(self) -> float:
        """``Σ_k √JS_k / √JS(first, last) ≥ 1``: √JS is a metric.  NaN if the ends compute the same."""
        straight = math.sqrt(8.0 * self.ends)
        return self.length / straight if straight else math.nan

    def plot(
        self, path: str | Path | None = None, **others: GeodesicLength
    ) -> Figure:
        """Draw how far the outputs have come at every t, together with ``others`` by label; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            **others: More paths between the same ends, for instance ``geodesic=...``.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_output_lengths

        label = "this" if others else ""
        return plot_output_lengths({label: self, **others}, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per step, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        rows = zip(self.ts, self.ts[1:], self.divergences, strict=False)
        write_csv(path, ["from", "to", "js"], list(rows))

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        derived = {
            "energy": self.energy,
            "length": self.length,
            "normalised_length": self.normalised_length,
        }
        write_json(path, {"format": FORMAT, **vars(self), **derived})

    @classmethod
    def from_json(cls, path: str | Path) -> GeodesicLength:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or holds something else.
        """
        data = read_json(path, FORMAT)
        try:
            return cls(
                tuple(data["ts"]),
                tuple(data["divergences"]),
                data["ends"],
                data["samples"],
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"malformed geodesic length in {path}: {error!r}"
            ) from error
