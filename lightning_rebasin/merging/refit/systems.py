"""A product or a convolution, read as a linear system.

For the solver every layer is ``y[r, g, :] = x[r, g, :] · W[g]``: rows ``r`` (samples × positions), groups ``g`` that do
not see each other, ``n`` inputs and ``m`` outputs per group.  A :class:`System` says how one operation is read that
way.  Of an image only some positions are looked at, so a row is a pair of sample and position.

A kernel of 3 over the signal ``[1, 2, 4, 8]`` has two rows of three inputs: ``[1, 2, 4]`` and ``[2, 4, 8]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows are looked at.

    Args:
        sample: Sample of each row, int64 ``(R,)``.
        position: Position of each row inside its sample, int64 ``(R,)``.
        positions: How many positions a sample has.
    """

    sample: Tensor
    position: Tensor
    positions: int

    @property
    def flat(self) -> Tensor:
        """Number of each row, all positions of the first sample first."""
        return self.sample * self.positions + self.position

    def to(self, device: torch.device) -> Rows:
        """On another device."""
        sample, position = self.sample.to(device), self.position.to(device)
        return Rows(sample, position, self.positions)


class System(ABC):
    """How one operation is read as a linear system."""

    #: Names of the operands that hold the data and the weight.
    data: str
    weight: str

    @abstractmethod
    def counts(self, output: Tensor, samples: int) -> tuple[int, int]:
        """Number of samples in an output, and of positions per sample."""

    @abstractmethod
    def inputs(
        self, given: Mapping[str, Any], output: Tensor, rows: Rows
    ) -> Tensor:
        """Inputs of the rows, ``(R, g, n)``, out of the arguments of the operation by name."""

    @abstractmethod
    def outputs(self, output: Tensor, rows: Rows) -> Tensor:
        """Outputs of the rows, ``(R, g, m)``."""

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The weight operand as ``(g, n, m)``."""


@final
@dataclass(frozen=True)
class Product(System):
    """``aten.mm``, ``aten.addmm``, ``aten.bmm``, ``aten.baddbmm``.

    Args:
        data: Name of the operand that holds the data.
        weight: Name of the other operand.
        left: Whether the weight is the left factor; everything is transposed then.
        batched: Whether several products are made at once: the groups.
        merged: Whether these have one and the same weight: the groups are nothing but more rows then.

    Example:
        >>> x, w = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0], [4.0]])
        >>> system, second = Product("self", "mat2"), Rows(torch.tensor([1]), torch.tensor([0]), 1)
        >>> system.inputs({"self": x}, x @ w, second).tolist(), system.outputs(x @ w, second).tolist()
        ([[[0.0, 1.0]]], [[[4.0]]])
    """

    data: str
    weight: str
    left: bool = False
    batched: bool = False
    merged: bool = False

    def counts(self, output: Tensor, samples: int) -> tuple[int, int]:
        """Rows that do not belong to samples evenly are samples of their own."""
        count = self._turned(output).shape[1]
        even = samples > 0 and count % samples == 0
        return (samples, count // samples) if even else (count, 1)

    def inputs(
        self, given: Mapping[str, Any], output: Tensor, rows: Rows
    ) -> Tensor:
        """Rows of the data operand."""
        del output
        return self._turned(given[self.data])[:, rows.flat].transpose(0, 1)

    def outputs(self, output: Tensor, rows: Rows) -> Tensor:
        """Rows of the product."""
        return self._turned(output)[:, rows.flat].transpose(0, 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, the right way round."""
        matrix = weight if self.batched else weight[None]
        matrix = matrix.transpose(1, 2) if self.left else matrix
        return matrix[:1] if self.merged else matrix

    def _turned(self, matrix: Tensor) -> Tensor:
        """``(groups, rows, columns)``, rows being those of the system."""
        matrix = matrix if self.batched else matrix[None]
        matrix = matrix.transpose(1, 2) if self.left else matrix
        return matrix.flatten(0, 1)[None] if self.merged else matrix


@final
@dataclass(frozen=True)
class Convolution(System):
    """``aten.convolution`` over any number of dimensions, the transposed ones included.

    A row is the patch that one output position sees, ordered by kernel position, then by input channel.  A transposed
    convolution is read from its output too: position ``o`` sees the input at ``(o + padding − k · dilation) / stride``
    through kernel position ``k`` where that is a whole number.

    Args:
        groups: Number of groups.
        stride: One number per spatial dimension, as the others.
        padding: Zeros around the input.
        dilation: Distance between kernel positions.
        kernel: Kernel size.
        transposed: Whether it is a transposed convolution.
    """

    groups: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel: tuple[int, ...]
    transposed: bool = False

    data = "input"
    weight = "weight"

    def counts(self, output: Tensor, samples: int) -> tuple[int, int]:
        """Every place of the output is a position."""
        del samples
        return len(output), output[0, 0].numel()

    def inputs(
        self, given: Mapping[str, Any], output: Tensor, rows: Rows
    ) -> Tensor:
        """The patches."""
        picture: Tensor = given[self.data]
        size = picture.shape[2:]
        flat, inside = self._sources(rows.position, output.shape[2:], size)
        channels = picture.flatten(2).transpose(1, 2)
        # (R, kernel positions, channels)
        patches = channels[rows.sample[:, None], flat]
        if not bool(inside.all()):
            patches = patches * inside[..., None].to(patches)
        split = patches.reshape(*flat.shape, self.groups, -1)
        return split.transpose(1, 2).flatten(2)

    def outputs(self, output: Tensor, rows: Rows) -> Tensor:
        """The channels at the positions."""
        channels = output.flatten(2).transpose(1, 2)
        picked = channels[rows.sample, rows.position]
        return picked.reshape(len(picked), self.groups, -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """Kernel positions and input channels to output channels."""
        # (g, out, in, kernel positions), or with out and in exchanged
        flat = weight.flatten(2)
        split = flat.reshape(self.groups, -1, *flat.shape[1:])
        order = (0, 3, 1, 2) if self.transposed else (0, 3, 2, 1)
        return split.permute(order).flatten(1, 2)

    def _sources(
        self,
        position: Tensor,
        output_size: torch.Size,
        input_size: torch.Size,
    ) -> tuple[Tensor, Tensor]:
        """For each row and kernel position: the input position that is seen, and whether it lies inside the input."""
        device = position.device
        places = torch.unravel_index(position, output_size)
        steps = [torch.arange(size, device=device) for size in self.kernel]
        offsets = torch.meshgrid(*steps, indexing="ij")
        count = int(torch.tensor(self.kernel).prod())
        flat = torch.zeros(len(position), count, dtype=torch.long)
        flat = flat.to(device)
        inside = torch.ones_like(flat, dtype=torch.bool)
        for d, size in enumerate(input_size):
            offset = offsets[d].reshape(1, -1) * self.dilation[d]
            place = places[d][:, None]
            if self.transposed:
                spread = place + self.padding[d] - offset
                inside &= spread % self.stride[d] == 0
                source = spread.div(self.stride[d], rounding_mode="floor")
            else:
                source = place * self.stride[d] - self.padding[d] + offset
            inside &= (source >= 0) & (source < size)
            flat = flat * size + source.clamp(0, size - 1)
        return flat, inside


@final
@dataclass(frozen=True)
class Scaling(System):
    """A gain and an offset per channel, as norms have: each channel is a group of one input and one output.

    The input is the present output, so that the matrix is one: what is solved is by how much it is to be scaled.

    Args:
        first: First of the dimensions that are channels.
        last: Last of them, counted from the end: −1 is the very last dimension.
        ndim: Number of dimensions of the output.

    Example:
        >>> y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> Scaling(1, -1, 2).outputs(y, Rows(torch.tensor([1]), torch.tensor([0]), 1)).tolist()
        [[[3.0], [4.0]]]
    """

    first: int
    last: int
    ndim: int

    data = weight = ""

    def counts(self, output: Tensor, samples: int) -> tuple[int, int]:
        """Everything but the channels is a row."""
        count = len(self._flat(output))
        even = samples > 0 and count % samples == 0
        return (samples, count // samples) if even else (count, 1)

    def inputs(
        self, given: Mapping[str, Any], output: Tensor, rows: Rows
    ) -> Tensor:
        """The outputs themselves."""
        del given
        return self.outputs(output, rows)

    def outputs(self, output: Tensor, rows: Rows) -> Tensor:
        """The channels of the rows."""
        return self._flat(output)[rows.flat][:, :, None]

    def matrix(self, weight: Tensor) -> Tensor:
        """One number per channel."""
        return weight.reshape(-1, 1, 1)

    def _flat(self, output: Tensor) -> Tensor:
        """``(rows, channels)``."""
        channels = range(self.first, self.ndim + self.last + 1)
        others = [d for d in range(self.ndim) if d not in channels]
        count = 1
        for d in channels:
            count *= output.shape[d]
        return output.permute(*others, *channels).reshape(-1, count)
