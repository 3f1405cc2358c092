"""What a plan consists of: the layers that are solved, and those that are left."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_rebasin.merging.refit.places import Place
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.merging.refit.systems import System


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm in eval mode, per output of a layer: slots of shape ``(g, m)``."""

    mean: Slots
    variance: Slots
    gain: Slots | None
    offset: Slots | None
    epsilon: float


@dataclass(frozen=True, eq=False)
class FittedLayer:
    """One layer to solve.

    Args:
        name: Name of its weight in the state dict.
        place: Where it runs.
        system: How it is read as a linear system.
        weight: Its weight, ``(g, n, m)``.
        bias: Its bias, ``(g, m)``.
        norm: The batch norm right behind it; of a batch norm that is a layer of its own, that one.
        gains: Gains per output on the way to the target, ``(g, m)``; they stay as they are.
        factor: Number by which its output is multiplied on the way to the target.
        steps: Elementwise operations on the way, the target's own among them.
        target: Where it is judged; its own place if there are no steps.
        joins: Whether it is judged after an addition to a stream.
        positions: Positions per sample.
    """

    name: str
    place: Place
    system: System
    weight: Slots
    bias: Slots | None
    norm: Norm | None
    gains: tuple[Slots, ...]
    factor: float
    steps: tuple[Place, ...]
    joins: bool
    positions: int

    @property
    def target(self) -> Place:
        """Where the layer is judged."""
        return self.steps[-1] if self.steps else self.place

    @property
    def intercept(self) -> bool:
        """Whether something can take up a shift of the output."""
        return self.bias is not None or self.norm is not None

    @property
    def written(self) -> set[str]:
        """Names of the tensors that a solution is written to."""
        norm = self.norm
        slots = [self.weight, self.bias]
        if norm is not None:
            slots += [norm.mean, norm.variance, norm.gain, norm.offset]
        return {slot.name for slot in slots if slot is not None}


@dataclass(frozen=True)
class LeftLayer:
    """A weight that is not solved, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The layers of a network in the order in which they run, and what keeps its average."""

    fitted: tuple[FittedLayer, ...]
    left: tuple[LeftLayer, ...]
