"""A point in weight space: a combination of sets of weights whose coefficients sum to 1.

Everything that is measured here is measured at points, whatever path or plane they lie on.  The sets that a point
combines are its *anchors*: the two ends of a line, the ends and the bends of a curve, the three models that span a
plane.

    line      (1 − λ)·a + λ·b              coefficients (1 − λ, λ)
    Bézier    (1 − t)²·a + 2t(1 − t)·c + t²·b
    plane     any coefficients that sum to 1, negative ones too
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.merging.interpolate import interpolate

State = Mapping[str, Tensor]
#: How far the sum of the coefficients may be from 1, and how far per size of the largest one.
_TOLERANCE, _ROUNDING = 1e-6, 1e-14
_PLAIN = (torch.float32, torch.float64)


@final
@dataclass(frozen=True, eq=False)
class Point:
    """Weights ``Σ_i c_i·θ_i`` with ``Σ_i c_i = 1``.

    Args:
        anchors: The sets of weights θ, with the same names and shapes; they are told apart by identity.
        coefficients: One finite number each.

    Raises:
        ConfigurationError: Not as many coefficients as anchors, or they do not sum to 1.

    Example:
        >>> a, b = {"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}
        >>> Point((a, b), (0.75, 0.25)).state()["w"].tolist()
        [1.0]
    """

    anchors: tuple[State, ...]
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.anchors) != len(self.coefficients) or not self.anchors:
            raise ConfigurationError(
                f"a point needs one coefficient per anchor, got {len(self.coefficients)} for {len(self.anchors)}"
            )
        # Infinity and NaN fail here too: sums with them are not near 1, and opposite infinities cannot be summed.
        finite = all(math.isfinite(c) for c in self.coefficients)
        total = math.fsum(self.coefficients) if finite else math.nan
        # Far outside the anchors the coefficients are large, and so is what rounding leaves of their sum.
        size = max(1.0, *map(abs, self.coefficients))
        if not abs(total - 1.0) <= max(_TOLERANCE, _ROUNDING * size):
            raise ConfigurationError(
                f"the coefficients of a point must sum to 1, {self.coefficients} sum to {total:g}"
            )

    @property
    def anchor(self) -> State | None:
        """The anchor that the point is, if it is one."""
        for anchor, coefficient in self.parts:
            if coefficient == 1.0 and len(self.parts) == 1:
                return anchor
        return None

    @property
    def parts(self) -> tuple[tuple[State, float], ...]:
        """Anchors and coefficients, without those that do not count."""
        pairs = zip(self.anchors, self.coefficients, strict=True)
        return tuple((anchor, c) for anchor, c in pairs if c != 0.0)

    def write(self, targets: State) -> None:
        """Write the weights into ``targets``, tensor by tensor, without another copy of them; exact at an anchor."""
        parts = self.parts
        coefficients = [coefficient for _, coefficient in parts]
        with torch.no_grad():
            for name, target in targets.items():
                tensors = [anchor[name] for anchor, _ in parts]
                combine_into(target, tensors, coefficients)

    def state(self) -> dict[str, Tensor]:
        """The weights, as a new dict with the dtypes and devices of the first anchor."""
        new = {
            name: torch.empty_like(t) for name, t in self.anchors[0].items()
        }
        self.write(new)
        return new


class WeightPath(Protocol):
    """A path through weight space: anything that gives a point for every t in [0, 1]."""

    def at(self, t: float, /) -> Point:
        """The point at t."""
        ...


def combine_into(
    target: Tensor, tensors: Sequence[Tensor], coefficients: Sequence[float]
) -> None:
    """Write ``Σ_i c_i·t_i`` into a tensor.

    Args:
        target: Any dtype; what is not floating point is taken from the tensor of the largest coefficient.
        tensors: One or more of its shape.
        coefficients: One number each, summing to 1.
    """
    if len(tensors) == 1:
        target.copy_(tensors[0])
        return
    plain = target.dtype in _PLAIN
    same = all(tensor.dtype == target.dtype for tensor in tensors)
    if len(tensors) == 2:
        # As ``interpolate`` does it, to the bit: barriers that were measured earlier stay what they are.
        first, second = tensors
        lam = coefficients[1]
        if plain and same:
            torch.lerp(first, second, lam, out=target)
        else:
            target.copy_(interpolate({"": first}, {"": second}, lam)[""])
    elif plain and same and len(tensors) == 3 and min(coefficients) > 0:
        # Two passes over the memory instead of three: between the first two, then towards the third.
        a, b, c = coefficients
        torch.lerp(tensors[0], tensors[1], b / (a + b), out=target)
        target.lerp_(tensors[2], c)
    elif plain and same:
        torch.mul(tensors[0], coefficients[0], out=target)
        for tensor, coefficient in zip(
            tensors[1:], coefficients[1:], strict=True
        ):
            target.add_(tensor, alpha=coefficient)
    else:
        target.copy_(_combined(tensors, coefficients))


def _combined(
    tensors: Sequence[Tensor], coefficients: Sequence[float]
) -> Tensor:
    """The combination in double precision, for half precision and mixed dtypes."""
    first = tensors[0]
    if not (first.is_floating_point() or first.is_complex()):
        largest = max(range(len(tensors)), key=lambda i: coefficients[i])
        return tensors[largest]
    wide = torch.complex128 if first.is_complex() else torch.float64
    total = torch.zeros_like(first, dtype=wide)
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        total.add_(tensor.to(first.device, wide), alpha=coefficient)
    return total
