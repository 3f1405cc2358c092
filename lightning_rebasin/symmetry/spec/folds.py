"""What has to be folded, and where: gains of norms and the weights that read them, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Reader:
    """A weight that reads the units of a norm along one of its dimensions, and the bias that is added to its result."""

    weight: str
    dim: int
    bias: str | None = None


@final
@dataclass(frozen=True)
class Fold:
    """The gain and the shift of one norm, and everything that reads them.

    A gain at the end of a branch goes into what writes it instead: the same product, along the writers' own units.

    Args:
        gain: Name of γ.
        shift: Name of β, or ``None``.
        readers: The weights into which they are folded.
        offset: What the network adds to the tensor before it multiplies: 1 for norms that store ``γ − 1``.
    """

    gain: str
    shift: str | None
    readers: tuple[Reader, ...]
    offset: float = 0.0

    @property
    def neutral(self) -> float:
        """The value of the tensor whose gain is 1."""
        return 1.0 - self.offset

    @property
    def absorbs_shift(self) -> bool:
        """Whether β can be folded as well: every reader has a bias."""
        return all(reader.bias is not None for reader in self.readers)


@final
@dataclass(frozen=True)
class Centre:
    """Tensors whose mean along one dimension nothing sees.

    Args:
        tensors: ``(name, dimension)``.
    """

    tensors: tuple[tuple[str, int], ...]
