"""How much two children of one training that fork at a step end up apart: the value that instability analysis gives.

A training is *stable* to the noise of SGD from a step on if two copies of it that go on from there with other data
orders end in one linearly connected region: the error barrier between them, their *instability*, is below 2 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, final

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.tables import (
    read_json,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-instability"


@final
@dataclass(frozen=True, repr=False)
class Instability:
    """Barriers between the children of every fork.

    Args:
        forks: Steps at which trainings were forked, ascending.
        seeds: One training each.
        curves: By seed and fork, the curve from one child to the other.
        metric: What instability is measured in.
        steps: Steps of a whole training.
        threshold: Below it a fork is stable.

    Raises:
        DataError: A curve is missing, or has no such metric.

    Example:
        >>> apart = BarrierCurve((0.0, 0.5, 1.0), {"accuracy": (0.9, 0.2, 0.9)})
        >>> together = BarrierCurve((0.0, 0.5, 1.0), {"accuracy": (0.9, 0.89, 0.9)})
        >>> found = Instability((0, 100), (7,), {(7, 0): apart, (7, 100): together}, "accuracy", 400)
        >>> [round(height, 2) for height in found.means], found.stable, found.stable_from
        ([0.7, 0.01], (False, True), 100)

    References:
        Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020.
    """

    forks: tuple[int, ...]
    seeds: tuple[int, ...]
    curves: Mapping[tuple[int, int], BarrierCurve]
    metric: str
    steps: int
    threshold: float = 0.02

    def __post_init__(self) -> None:
        for seed in self.seeds:
            for fork in self.forks:
                if (seed, fork) not in self.curves:
                    raise DataError(
                        f"there is no curve of seed {seed}, fork {fork}"
                    )
                # Raises if the metric is unknown.
                self.curves[seed, fork].height(self.metric)

    def heights(self, seed: int) -> tuple[float, ...]:
        """The instability at every fork of one training: how much worse the worst point is than the mean child."""
        return tuple(
            self.curves[seed, fork].height(self.metric) for fork in self.forks
        )

    @property
    def means(self) -> tuple[float, ...]:
        """The mean over all trainings at every fork."""
        rows = [self.heights(seed) for seed in self.seeds]
        return tuple(mean(column) for column in zip(*rows, strict=True))

    @property
    def stable(self) -> tuple[bool, ...]:
        """Whether the mean at a fork is below the threshold."""
        return tuple(height < self.threshold for height in self.means)

    @property
    def stable_from(self) -> int | None:
        """The first fork from which on all are stable; ``None`` if the last one is not."""
        found = None
        for fork, stable in reversed(
            list(zip(self.forks, self.stable, strict=True))
        ):
            if not stable:
                break
            found = fork
        return found

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw instability against the fork; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_instability

        return plot_instability({"": self}, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per training and fork: instability, and the metric of both children and of the middle.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        rows = []
        for seed in self.seeds:
            for fork in self.forks:
                curve = self.curves[seed, fork]
                row = curve.values[self.metric]
                height = curve.height(self.metric)
                middle = curve.midpoint(self.metric)
                rows.append([seed, fork, height, row[0], row[-1], middle])
        header = ["seed", "fork", "instability", "child 1", "child 2"]
        write_csv(path, [*header, "middle"], rows)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        curves = []
        for (seed, fork), curve in self.curves.items():
            curves.append(
                {"seed": seed, "fork": fork, "curve": curve.to_dict()}
            )
        stated = {"means": self.means, "stable_from": self.stable_from}
        own = {**vars(self), "curves": curves}
        write_json(path, {"format": FORMAT, **own, **stated})

    @classmethod
    def from_json(cls, path: str | Path) -> Instability:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or holds something else.
        """
        data = read_json(path, FORMAT)
        try:
            return _from_dict(data)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"malformed instability in {path}: {error!r}"
            ) from error

    def __repr__(self) -> str:
        heights = ", ".join(
            f"{fork}: {height:.4g}"
            for fork, height in zip(self.forks, self.means, strict=True)
        )
        return f"Instability({self.metric} by fork, of {self.steps} steps: {heights}; stable from {self.stable_from})"

    def __str__(self) -> str:
        lines = [f"{'fork':>8} {'instability':>12}"]
        for fork, height, stable in zip(
            self.forks, self.means, self.stable, strict=True
        ):
            verdict = "stable" if stable else ""
            lines.append(f"{fork:>8} {height:>12.4f}  {verdict}".rstrip())
        return "\n".join(lines)


def _from_dict(data: Mapping[str, Any]) -> Instability:
    curves = {}
    for entry in data["curves"]:
        key = int(entry["seed"]), int(entry["fork"])
        curves[key] = BarrierCurve.from_dict(entry["curve"])
    return Instability(
        tuple(data["forks"]),
        tuple(data["seeds"]),
        curves,
        data["metric"],
        int(data["steps"]),
        float(data["threshold"]),
    )
