"""What derivatives say about a barrier, beside the measured one.

``φ(α) = L(θ₁ + α·Δ)`` with ``Δ = θ₂ − θ₁``.  The barrier at the midpoint, ``φ(½) − ½(φ(0) + φ(1))``, follows exactly
from what happens along the chord, and roughly from what happens at its ends:

    by curvatures   −∫ ½·min(s, 1 − s)·φ″(s) ds                   where the loss is twice differentiable
    by slopes       ½·∫_0^½ φ′(s) ds − ½·∫_½^1 φ′(s) ds            rectifiers too
    bound           μ‖Δ‖²/8,  if  φ″ ≥ −μ‖Δ‖² on the chord
    Taylor          ¼(φ′(0) − φ′(1)) + (1/16)(φ″(0) + φ″(1))      the mean of the expansions from both ends
    quintic         (5/32)(φ′(0) − φ′(1)) + (1/64)(φ″(0) + φ″(1))  Hermite interpolation of φ, φ′, φ″ at the ends

Moving only layer l half way from one end changes the loss by about ``⅛ Δ_lᵀ H_ll Δ_l`` (plus ``½ g_l·Δ_l`` where the
gradient is not zero).

The subject is that of Singh et al., "Landscaping Linear Mode Connectivity", 2024 (arXiv 2406.16300, of which only the
abstract was read); the formulas are our own derivation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.quadrature import ChordGrid
from lightning_rebasin.landscape.tables import (
    read_json,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-prediction"


@dataclass(frozen=True)
class LayerPrediction:
    """What happens if only one layer moves half way, from either end.

    Args:
        layer: The layer.
        distance: ``‖Δ_l‖`` over everything in it that moves.
        slopes: ``g_l·Δ_l`` at the first end, and at the second one in the direction of the first.
        curvatures: ``Δ_lᵀ H_ll Δ_l`` at both ends.
        measured: How much the loss of either end changes with this layer half way.

    Example:
        >>> LayerPrediction("fc", 2.0, (-1.0, 0.0), (16.0, 8.0), (1.5, 1.0)).predicted
        (2.0, 1.0)
    """

    layer: str
    distance: float
    slopes: tuple[float, float]
    curvatures: tuple[float, float]
    measured: tuple[float, float]

    @property
    def predicted(self) -> tuple[float, float]:
        """``⅛ Δ_lᵀ H_ll Δ_l`` from both ends."""
        first, second = self.curvatures
        return first / 8.0, second / 8.0

    @property
    def taylor(self) -> tuple[float, float]:
        """``½ g_l·Δ_l + ⅛ Δ_lᵀ H_ll Δ_l`` from both ends: the better one where training has not converged."""
        first, second = self.predicted
        return (
            0.5 * self.slopes[0] + first,
            0.5 * self.slopes[1] + second,
        )


@dataclass(frozen=True, repr=False)
class BarrierPrediction:
    """The loss and its derivatives along a chord, and the barriers that follow.

    Args:
        metric: Which loss.
        grid: Where the derivatives were taken.
        losses: φ at each place of ``grid.at``.
        slopes: φ′ there.
        curvatures: φ″ there.
        distance: ``‖Δ‖`` over everything that moves, running statistics included.
        measured: The measured curve of all metrics at the borders of the grid's pieces.
        layers: What single layers do.
        samples: How many samples every value averages over.

    Example:
        >>> curve = BarrierCurve((0.0, 0.5, 1.0), {"loss": (0.0, 0.5, 0.0)})
        >>> s = ChordGrid(2, 4).at  # φ = ½(u² − 1)² with u = 1 − 2s
        >>> u = [1 - 2 * x for x in s]
        >>> found = BarrierPrediction(
        ...     "loss", ChordGrid(2, 4), tuple(0.5 * (x * x - 1) ** 2 for x in u),
        ...     tuple(-4 * x * (x * x - 1) for x in u), tuple(4 * (6 * x * x - 2) for x in u), 2.0, curve,
        ... )
        >>> [round(x, 9) for x in (found.by_curvatures(), found.by_slopes(), found.bound, found.taylor, found.quintic)]
        [0.5, 0.5, 1.0, 2.0, 0.5]
    """

    metric: str
    grid: ChordGrid
    losses: tuple[float, ...]
    slopes: tuple[float, ...]
    curvatures: tuple[float, ...]
    distance: float
    measured: BarrierCurve
    layers: tuple[LayerPrediction, ...] = ()
    samples: int = 0

    @property
    def barrier(self) -> float:
        """The measured one at the midpoint; negative if the loss is lower there than on the chord."""
        row = self.measured.values[self.metric]
        return self.measured.midpoint(self.metric) - 0.5 * (row[0] + row[-1])

    def by_curvatures(self, alpha: float = 0.5) -> float:
        """``−∫ G(α, s)·φ″(s) ds`` from Hessian–vector products; exact for networks without kinks.

        Args:
            alpha: One of the borders of the grid's pieces.
        """
        return self.grid.from_curvatures(self.curvatures, alpha)

    def by_slopes(self, alpha: float = 0.5) -> float:
        """The same from gradients; exact with kinks too.

        Args:
            alpha: One of the borders of the grid's pieces.
        """
        return self.grid.from_slopes(self.slopes, alpha)

    @property
    def mu(self) -> float:
        """The most negative curvature that was met on the chord, per squared length; 0 if there is none."""
        if not self.distance:
            return 0.0
        return max(0.0, -min(self.curvatures)) / self.distance**2

    @property
    def bound(self) -> float:
        """``μ‖Δ‖²/8``: no barrier is higher if the curvature is nowhere more negative than where it was taken."""
        return self.mu * self.distance**2 / 8.0

    @property
    def taylor(self) -> float:
        """Two-sided Taylor: ``¼(φ′(0) − φ′(1)) + (1/16)(φ″(0) + φ″(1))``."""
        slope, curvature = self._ends
        return slope / 4.0 + curvature / 16.0

    @property
    def quintic(self) -> float:
        """Quintic Hermite: ``(5/32)(φ′(0) − φ′(1)) + (1/64)(φ″(0) + φ″(1))``."""
        slope, curvature = self._ends
        return 5.0 / 32.0 * slope + curvature / 64.0

    def barriers(self) -> dict[str, float]:
        """The measured barrier at the midpoint and all predictions, by name."""
        return {
            "measured": self.barrier,
            "by slopes": self.by_slopes(),
            "by curvatures": self.by_curvatures(),
            "quintic": self.quintic,
            "Taylor": self.taylor,
            "bound": self.bound,
        }

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the loss and its curvature along the chord, all barriers, and the layers; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_prediction

        return plot_prediction(self, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per place: the loss and its derivatives, and the measured loss where there is one, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        row = self.measured.values[self.metric]
        known = dict(zip(self.measured.lambdas, row, strict=True))
        measured = [known.get(s, "") for s in self.grid.at]
        columns = (self.losses, self.slopes, self.curvatures, measured)
        write_csv(
            path,
            ["at", "loss", "slope", "curvature", "measured"],
            list(zip(self.grid.at, *columns, strict=True)),
        )

    def layers_to_csv(self, path: str | Path) -> None:
        """Write one row per layer and end, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        header = ["layer", "base", "distance", "slope", "curvature"]
        rows: list[list[Any]] = []
        for layer in self.layers:
            for k, base in enumerate("ab"):
                numbers = [layer.slopes[k], layer.curvatures[k]]
                numbers += [layer.predicted[k], layer.measured[k]]
                rows.append([layer.layer, base, layer.distance, *numbers])
        write_csv(path, [*header, "predicted", "measured"], rows)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        own = vars(self) | {
            "grid": asdict(self.grid),
            "measured": self.measured.to_dict(),
            "layers": [asdict(layer) for layer in self.layers],
        }
        write_json(
            path, {"format": FORMAT, "barriers": self.barriers(), **own}
        )

    @classmethod
    def from_json(cls, path: str | Path) -> BarrierPrediction:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or is not a prediction.
        """
        data = read_json(path, FORMAT)
        try:
            return cls(
                data["metric"],
                ChordGrid(**data["grid"]),
                tuple(data["losses"]),
                tuple(data["slopes"]),
                tuple(data["curvatures"]),
                data["distance"],
                BarrierCurve.from_dict(data["measured"]),
                tuple(_layer(entry) for entry in data["layers"]),
                data["samples"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"malformed prediction in {path}: {error!r}"
            ) from error

    def __repr__(self) -> str:
        parts = []
        for name, value in self.barriers().items():
            parts.append(f"{name} {value:.4g}")
        return f"BarrierPrediction({self.metric}, {self.samples} samples; barriers: {', '.join(parts)})"

    def __str__(self) -> str:
        lines = [f"barrier of {self.metric} at the midpoint"]
        for name, value in self.barriers().items():
            lines.append(f"  {name:<14}{value:>12.5g}")
        if self.barrier > self.bound:
            # Rectifiers are bent in their kinks only, where second derivatives do not look.
            lines.append(
                "  the bound does not hold: curvature was missed; trust 'by slopes'"
            )
        if not self.layers:
            return "\n".join(lines)
        width = max(len(layer.layer) for layer in self.layers)
        head = ["from a", "measured", "from b", "measured"]
        lines.append("one layer half way, ⅛·Δ·H·Δ")
        lines.append("  " + " " * width + "".join(f"{h:>12}" for h in head))
        for layer in self.layers:
            pairs = zip(layer.predicted, layer.measured, strict=True)
            text = "".join(f"{p:>12.4g}{m:>12.4g}" for p, m in pairs)
            lines.append(f"  {layer.layer:<{width}}{text}")
        return "\n".join(lines)

    @property
    def _ends(self) -> tuple[float, float]:
        """``φ′(0) − φ′(1)`` and ``φ″(0) + φ″(1)``."""
        slope = self.slopes[0] - self.slopes[-1]
        return slope, self.curvatures[0] + self.curvatures[-1]


def _layer(entry: Mapping[str, Any]) -> LayerPrediction:
    """A layer from its JSON."""
    pairs = {}
    for name in ("slopes", "curvatures", "measured"):
        first, second = entry[name]
        pairs[name] = (first, second)
    return LayerPrediction(entry["layer"], entry["distance"], **pairs)
