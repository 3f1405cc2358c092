"""``measure_path``: the loss along any path through weight space, and how long the path is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import BarrierCurve, lambda_grid
from lightning_rebasin.landscape.lengths import arc_lengths, corners
from lightning_rebasin.landscape.measure import (
    Loaders,
    curve_from_rows,
    evaluate_points,
)
from lightning_rebasin.landscape.paths.polygon import Polygon
from lightning_rebasin.landscape.points import State, WeightPath
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.weights import (
    parameter_names,
    without_compilation_prefix,
)


class PathSummary(NamedTuple):
    """What Garipov et al. report of a metric along a path.

    Args:
        lowest: Smallest value.
        highest: Largest value.
        mean: ``∫₀¹ L(φ(t)) dt``, by the trapezoidal rule.
        integral: ``∫ L ds / ∫ ds`` over the arc length s, by the trapezoidal rule.
    """

    lowest: float
    highest: float
    mean: float
    integral: float


@dataclass(frozen=True, repr=False)
class PathCurve(BarrierCurve):
    """Metrics at points t of a path, with the distance travelled; barriers are those of a :class:`BarrierCurve`.

    Args:
        lengths: For each t the distance from the start along the path, over the parameters.
        straight: The distance of the ends.

    Raises:
        DataError: As for a barrier curve, or not as many lengths as points.

    Example:
        >>> curve = PathCurve((0.0, 0.5, 1.0), {"loss": (1.0, 3.0, 1.0)}, lengths=(0.0, 4.0, 5.0), straight=4.0)
        >>> curve.normalised_length, curve.summary("loss")
        (1.25, PathSummary(lowest=1.0, highest=3.0, mean=2.0, integral=2.0))
    """

    lengths: tuple[float, ...] = ()
    straight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = tuple(float(s) for s in self.lengths) or self.lambdas
        if len(lengths) != len(self.lambdas):
            raise DataError(
                f"{len(lengths)} lengths for {len(self.lambdas)} points"
            )
        object.__setattr__(self, "lengths", lengths)

    @property
    def length(self) -> float:
        """Length of the path."""
        return self.lengths[-1]

    @property
    def normalised_length(self) -> float:
        """Length over the distance of the ends: 1 for a straight path, NaN if the ends are the same."""
        return self.length / self.straight if self.straight else float("nan")

    def summary(self, name: str) -> PathSummary:
        """Lowest, highest and mean value of a metric along the path.

        Raises:
            DataError: The curve has no such metric.
        """
        row = self._row(name)
        return PathSummary(
            min(row),
            max(row),
            _trapezoid(row, self.lambdas),
            _trapezoid(row, self.lengths),
        )

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain JSON values; a barrier curve reads them too."""
        own = {"lengths": list(self.lengths), "straight": self.straight}
        return {**super().to_dict(), **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PathCurve:
        """Inverse of :meth:`to_dict`.

        Raises:
            DataError: ``data`` is not the curve of a path.
        """
        plain = BarrierCurve.from_dict(data)
        try:
            lengths = tuple(float(s) for s in data["lengths"])
            straight = float(data["straight"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"malformed curve of a path: {error!r}") from error
        return from_barrier(plain, lengths, straight)

    def __repr__(self) -> str:
        text = super().__repr__().replace("BarrierCurve(", "PathCurve(", 1)
        return f"{text[:-1]}; {self.normalised_length:.4g} × the straight way)"


def from_barrier(
    curve: BarrierCurve, lengths: Sequence[float], straight: float
) -> PathCurve:
    """A barrier curve with the lengths that it was measured at."""
    return PathCurve(
        curve.lambdas,
        curve.values,
        curve.higher_is_better,
        curve.samples,
        tuple(lengths),
        straight,
    )


def measure_path(
    module: nn.Module,
    path: WeightPath | Sequence[State],
    dataloader: Loaders,
    points: int | Sequence[float] = 61,
    *,
    loss: LossFunction | None = None,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> PathCurve:
    """Measure a module's loss and metrics along a path, and the length of the path.

    Args:
        module: As for :func:`~lightning_rebasin.measure_barrier`: a LightningModule, or any module with ``loss``.
        path: Anything with ``at(t)``, such as the paths in ``lightning_rebasin.landscape.paths``; or sets of weights,
            which are joined by straight pieces.
        dataloader: Batches, or a list of loaders.
        points: Number of evenly spaced t, or the t themselves; 0, ½, 1 and the corners of a chain are always added.
        loss: ``loss(module, batch)``, as for ``measure_barrier``.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every t.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.

    Returns:
        The curve.

    Raises:
        ConfigurationError: A plain module without ``loss``, or fewer than two sets of weights.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.

    Example:
        >>> import torch
        >>> module = nn.Linear(1, 1, bias=False)
        >>> chain = [{"weight": torch.tensor([[w]])} for w in (0.0, 2.0, 1.0)]
        >>> curve = measure_path(module, chain, [torch.ones(4, 1)], 3, loss=lambda m, x: m(x).mean())
        >>> curve.values["loss"], curve.normalised_length
        ((0.0, 2.0, 1.0), 3.0)

    References:
        Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018 (61 points).
    """
    route = as_path(path)
    ts = lambda_grid(points)
    ts = lambda_grid([*ts, *corners(route)])
    where = [route.at(t) for t in ts]
    measured = evaluate_points(
        module,
        where,
        dataloader,
        loss=loss,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
        label="path",
    )
    names = parameter_names(module)
    lengths = arc_lengths(where, names)
    straight = arc_lengths([where[0], where[-1]], names)[-1]
    return from_barrier(curve_from_rows(ts, *measured), lengths, straight)


def as_path(path: WeightPath | Sequence[State]) -> WeightPath:
    """A path; sets of weights become the chain through them.

    Raises:
        ConfigurationError: There are fewer than two.
    """
    if not isinstance(path, Sequence):
        return path
    return Polygon(tuple(without_compilation_prefix(s) for s in path))


def _trapezoid(row: Sequence[float], at: Sequence[float]) -> float:
    """The mean of a piecewise linear function over where it is given; plain if it stays in one place."""
    total = 0.0
    for k in range(len(row) - 1):
        total += 0.5 * (row[k] + row[k + 1]) * (at[k + 1] - at[k])
    width = at[-1] - at[0]
    return total / width if width else sum(row) / len(row)
