"""Geometric features of two runs at one step, whole network and per layer, and how they develop over a training.

With θ₁ the running network, θ₂ the reference, θ_i⁰ where each of them began, and θ_b where they part (the *fork*):

    distance, cosine              ‖θ₁ − θ₂‖, cos(θ₁, θ₂)
    moved, moved_cosine           ‖θ₁ − θ₁⁰‖, cos(θ₁, θ₁⁰), and the same for the reference
    angle                         arccos cos(θ₁ − θ_b, θ₂ − θ_b), in degrees
    gradient_norm                 ‖∇L(θ₁)‖
    slope, curvature              ∇L(θ₁)·Δ and Δᵀ H(θ₁) Δ along the chord Δ = θ₂ − θ₁; of a layer: with only Δ_l

All of them are over the parameters; running statistics are no directions here.  ``curvature / distance²`` is the
curvature per unit length.  The list is that of Singh et al., "Landscaping Linear Mode Connectivity", 2024 (arXiv
2406.16300, of which only the abstract was read); definitions are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.geometry import separation
from lightning_rebasin.landscape.points import State
from lightning_rebasin.landscape.tables import (
    read_json,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-features"
#: How the whole network is called among its layers.
WHOLE = "(all)"


@dataclass(frozen=True)
class Features:
    """Features of the whole network, or of one layer; NaN where something is not known.

    Args:
        distance: To the reference.
        cosine: With the reference.
        moved: Distance to the start of the run.
        moved_cosine: Cosine with the start of the run.
        reference_moved: Distance of the reference to its own start.
        reference_moved_cosine: Cosine of the reference with its own start.
        angle: Between the ways from the fork, in degrees.
        gradient_norm: Length of the gradient of the loss.
        slope: Gradient times chord.
        curvature: Chord times Hessian times chord.
    """

    distance: float
    cosine: float
    moved: float
    moved_cosine: float
    reference_moved: float = math.nan
    reference_moved_cosine: float = math.nan
    angle: float = math.nan
    gradient_norm: float = math.nan
    slope: float = math.nan
    curvature: float = math.nan


NAMES = tuple(field.name for field in fields(Features))


@dataclass(frozen=True)
class FeatureRow:
    """Features at one step.

    Args:
        step: Optimizer steps taken.
        epoch: The epoch, from 0.
        loss: The loss on the batches on which derivatives were taken; NaN if there are none.
        parts: Features by layer, those of the whole network under ``"(all)"``.
    """

    step: int
    epoch: int
    loss: float
    parts: Mapping[str, Features]

    @property
    def whole(self) -> Features:
        """Features of the whole network."""
        return self.parts[WHOLE]


@dataclass(frozen=True, repr=False)
class FeatureHistory:
    """Features over a training.

    Args:
        rows: By step.

    Example:
        >>> row = FeatureRow(10, 0, 0.5, {"(all)": Features(2.0, 0.5, 1.0, 0.9)})
        >>> history = FeatureHistory((row,))
        >>> history, history.column("moved_cosine")
        (FeatureHistory(1 steps, 0 layers), (0.9,))
    """

    rows: tuple[FeatureRow, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        parts = self.rows[0].parts if self.rows else ()
        return tuple(name for name in parts if name != WHOLE)

    def column(self, name: str, layer: str = WHOLE) -> tuple[float, ...]:
        """One feature at every step.

        Args:
            name: A field of :class:`Features`.
            layer: Of which layer.

        Raises:
            DataError: There is no such feature or layer.
        """
        if name not in NAMES or layer not in (WHOLE, *self.layers):
            raise DataError(
                f"there is no feature {name!r} of {layer!r}; features: {', '.join(NAMES)}; layers: "
                f"{', '.join(self.layers) or 'none'}"
            )
        return tuple(getattr(row.parts[layer], name) for row in self.rows)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw every feature over the steps, layers thin and the whole network thick; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.

        Returns:
            The matplotlib figure.

        Raises:
            DataError: There is nothing to draw.
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_features

        return plot_features(self, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per step and layer, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        rows: list[list[Any]] = []
        for row in self.rows:
            for layer, own in row.parts.items():
                numbers = asdict(own).values()
                rows.append([row.step, row.epoch, row.loss, layer, *numbers])
        write_csv(path, ["step", "epoch", "loss", "layer", *NAMES], rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"format": FORMAT, "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureHistory:
        """Inverse of :meth:`to_dict`.

        Raises:
            DataError: ``data`` is not a history.
        """
        rows = []
        try:
            for entry in data["rows"]:
                parts = {}
                for layer, own in entry["parts"].items():
                    parts[layer] = Features(**own)
                when = (entry["step"], entry["epoch"], entry["loss"])
                rows.append(FeatureRow(*when, parts))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"malformed features: {error!r}") from error
        return cls(tuple(rows))

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | Path) -> FeatureHistory:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or holds something else.
        """
        return cls.from_dict(read_json(path, FORMAT))

    def __repr__(self) -> str:
        return f"FeatureHistory({len(self.rows)} steps, {len(self.layers)} layers)"


@dataclass(frozen=True, eq=False)
class Places:
    """The networks that are compared.

    Args:
        current: The running network.
        reference: What it is compared with.
        start: Where the run began.
        reference_start: Where the reference's run began, if that is known.
        fork: Where both part; the start of the run if omitted.
    """

    current: State
    reference: State
    start: State
    reference_start: State | None = None
    fork: State | None = None


def geometry(places: Places, names: Sequence[str]) -> Features:
    """The features that need no data.

    Args:
        places: The networks.
        names: Which tensors count.

    Returns:
        Distances, cosines and the angle.

    Example:
        >>> import torch
        >>> here, there, start = ({"w": torch.tensor(v)} for v in ([3.0, 0.0], [0.0, 4.0], [0.0, 0.0]))
        >>> found = geometry(Places(here, there, start), ["w"])
        >>> found.distance, found.moved, found.angle
        (5.0, 3.0, 90.0)
    """
    current, reference = places.current, places.reference
    apart = separation(current, reference, names)
    moved = separation(current, places.start, names)
    other = (math.nan, math.nan)
    if places.reference_start is not None:
        other = separation(reference, places.reference_start, names)
    fork = places.start if places.fork is None else places.fork
    ways = [_from(fork, end, names) for end in (current, reference)]
    cosine = separation(ways[0], ways[1], names).cosine
    # Rounding may lead outside [−1, 1]; NaN, if one of them never left, stays.
    inside = cosine if math.isnan(cosine) else max(-1.0, min(1.0, cosine))
    return Features(
        *apart, *moved, *other, angle=math.degrees(math.acos(inside))
    )


def _from(start: State, end: State, names: Sequence[str]) -> dict[str, Tensor]:
    """The way from one network to another."""
    found = {}
    for name in names:
        here = end[name].detach()
        found[name] = here - start[name].detach().to(here)
    return found
