"""The values of metrics on a plane, with where models and a curve lie on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.tables import (
    read_json,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-loss-plane"
Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, repr=False)
class LossPlane:
    """Metrics on a grid of a plane, and where models and a curve lie on it.

    Args:
        xs: First coordinates, ascending.
        ys: Second coordinates, ascending.
        values: For each metric one row per y with one value per x.
        models: Coordinates of the models.
        model_values: For each metric its value at every model.
        curve: Coordinates of points of a curve, projected on the plane; may be empty.
        off_plane: Largest distance of these points from the plane.
        higher_is_better: Metrics for which larger is better.
        samples: How many samples every value averages over.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: Mapping[str, Grid]
    models: tuple[tuple[float, float], ...] = ()
    model_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    off_plane: float = 0.0
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    samples: int = 0

    def plot(
        self,
        path: str | Path | None = None,
        metric: str | None = None,
        *,
        levels: str | Sequence[float] = "log",
        labels: Sequence[str] | None = None,
    ) -> Figure:
        """Draw contours with the models and the curve; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            metric: Which metric; the first loss if omitted.
            levels: ``"log"`` (distances from the best value grow geometrically), ``"linear"``, or the levels.
            labels: Names of the models; a, b, c if omitted.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_plane

        return plot_plane(
            self, metric, path=path, levels=levels, labels=labels
        )

    def to_csv(self, path: str | Path) -> None:
        """Write one row per grid point: x, y and the metrics, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        rows = []
        for j, y in enumerate(self.ys):
            for i, x in enumerate(self.xs):
                here = [grid[j][i] for grid in self.values.values()]
                rows.append([x, y, *here])
        write_csv(path, ["x", "y", *self.values], rows)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        write_json(path, {"format": FORMAT, **vars(self)})

    @classmethod
    def from_json(cls, path: str | Path) -> LossPlane:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or is not a plane.
        """
        data = read_json(path, FORMAT)
        try:
            return cls(**_fields(data))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"malformed plane in {path}: {error!r}") from error

    def __repr__(self) -> str:
        size = f"{len(self.xs)} × {len(self.ys)} points"
        lows = []
        for name, grid in self.values.items():
            best = max if self.higher_is_better.get(name) else min
            lows.append(f"{name} {best(map(best, grid)):.4g}")
        return f"LossPlane({size}, {self.samples} samples; best: {', '.join(lows) or 'none'})"


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plane from JSON, with lists as tuples."""
    kept = {k: v for k, v in data.items() if k != "format"}
    kept["values"] = {
        name: tuple(map(tuple, grid)) for name, grid in data["values"].items()
    }
    kept["model_values"] = {
        name: tuple(row) for name, row in data["model_values"].items()
    }
    for name in ("xs", "ys"):
        kept[name] = tuple(data[name])
    for name in ("models", "curve"):
        kept[name] = tuple(map(tuple, data[name]))
    return kept
