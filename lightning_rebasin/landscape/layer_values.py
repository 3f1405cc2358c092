"""The values of metrics with only some layers of two networks mixed, and the barriers they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

FORMAT = "lightning-rebasin-layer-barriers"
#: One layer at a time, growing sets in order, or so many layers in a row.
Mode = Literal["single", "cumulative", "window"]
Base = Literal["a", "b"]
BASES: tuple[Base, Base] = ("a", "b")
#: For each base and each set of layers the values along α.
Rows = Mapping[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True, repr=False)
class LayerBarriers:
    """Metrics with only some layers mixed, from both bases.

    Args:
        layers: One label per set of layers.
        lambdas: The α that were measured: the share of the second model.
        values: For each metric, base and set of layers the values along α.
        ends: For each metric its values at the full models.
        mode: Which sets were taken.
        higher_is_better: Metrics for which larger is better.
        samples: How many samples every value averages over.

    Example:
        >>> rows = {"a": ((1.0, 4.0, 2.0),), "b": ((2.0, 2.0, 3.0),)}
        >>> LayerBarriers(("fc",), (0.0, 0.5, 1.0), {"loss": rows}, {"loss": (1.0, 3.0)}).heights("loss")
        {'a': (2.0,), 'b': (1.0,)}
    """

    layers: tuple[str, ...]
    lambdas: tuple[float, ...]
    values: Mapping[str, Rows]
    ends: Mapping[str, tuple[float, float]]
    mode: Mode = "single"
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    samples: int = 0

    def heights(self, name: str | None = None) -> dict[str, tuple[float, ...]]:
        """The barrier of every set of layers, by base.

        Args:
            name: A metric; the first loss if omitted.

        Raises:
            DataError: There is no such metric.
        """
        name = main_metric(self.values, name)
        better = self.higher_is_better.get(name, is_higher_better(name))
        sign = -1.0 if better else 1.0
        mean = 0.5 * sum(self.ends[name])
        found = {}
        for base, rows in self.values[name].items():
            excess = ([sign * (v - mean) for v in row] for row in rows)
            # A NaN among the values is a NaN barrier: max() would depend on its place.
            found[base] = tuple(
                sum(row) if any(v != v for v in row) else max(row)  # noqa: PLR0124
                for row in excess
            )
        return found

    def plot(
        self,
        path: str | Path | None = None,
        metric: str | None = None,
        **others: LayerBarriers,
    ) -> Figure:
        """Draw the barriers with the layers down the side, both bases; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            metric: Which metric; the first loss if omitted.
            **others: More of the same layers, for instance ``matched=...``.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_layers

        label = "naive" if others else ""
        return plot_layers({label: self, **others}, metric, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per set of layers, base and α, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        rows: list[list[Any]] = []
        for i, layer in enumerate(self.layers):
            for base in BASES:
                for k, lam in enumerate(self.lambdas):
                    own = [v[base][i][k] for v in self.values.values()]
                    rows.append([layer, base, lam, *own])
        write_csv(path, ["layer", "base", "lambda", *self.values], rows)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        write_json(path, {"format": FORMAT, **vars(self)})

    @classmethod
    def from_json(cls, path: str | Path) -> LayerBarriers:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or holds something else.
        """
        data = read_json(path, FORMAT)
        try:
            values = {}
            for name, bases in data["values"].items():
                values[name] = {
                    b: tuple(map(tuple, r)) for b, r in bases.items()
                }
            return cls(
                tuple(data["layers"]),
                tuple(data["lambdas"]),
                values,
                {
                    name: (pair[0], pair[1])
                    for name, pair in data["ends"].items()
                },
                data["mode"],
                data["higher_is_better"],
                data["samples"],
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"malformed layer barriers in {path}: {error!r}"
            ) from error

    def __repr__(self) -> str:
        parts = []
        for name in self.values:
            highest = max(max(row) for row in self.heights(name).values())
            parts.append(f"{name} {highest:.4g}")
        return (
            f"LayerBarriers({self.mode}, {len(self.layers)} sets, {self.samples} samples; "
            f"highest: {', '.join(parts) or 'none'})"
        )
