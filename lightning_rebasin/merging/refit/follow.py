"""From a layer's output to the place where the layer is judged.

The output is followed through what can be undone or foreseen, as long as nobody else looks at it:

* moves of elements, and factors that are plain numbers;
* the addition of a bias, which becomes the intercept, and a gain per output, which is divided out again;
* a batch norm in front of everything else: it is linear in eval mode, and is absorbed into the fit;
* additions of anything that is known by then, that is, depends on earlier layers only: the layer *joins a stream*.

Where this ends the layer is judged.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from lightning_rebasin.merging.refit.fitted import FittedLayer, Norm
from lightning_rebasin.merging.refit.flow import Flow
from lightning_rebasin.merging.refit.norms import (
    BATCH_NORMS,
    STATISTICS,
    norm_of,
)
from lightning_rebasin.merging.refit.places import MOVES, Place, replay_move
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.merging.refit.systems import Rows, Scaling, System
from lightning_rebasin.symmetry.trace.tape import Node, Ref

#: Contractions that add a bias themselves, and the name it has there.
_BIASES = {
    "aten.addmm": "self",
    "aten.baddbmm": "self",
    "aten.convolution": "bias",
}


@final
class Follower:
    """Follows the output of one layer.

    Args:
        flow: The pass.
        position: Where the layer runs.
        system: How it is read as a linear system.
        weight: Its weight as it stands in the operation.
    """

    def __init__(
        self,
        flow: Flow,
        position: int,
        system: System,
        weight: Slots,
    ) -> None:
        self._flow = flow
        self._position = position
        self._node = flow.live[position]
        self._system = system
        self._weight = weight
        self._value = self._node.outputs[0]
        self._shape = flow.shape(self._value)
        #: Where each element of the present value stood in the layer's output; None: nothing was moved.
        self._index: Tensor | None = None
        self._bias: Slots | None = None
        self._norm: Norm | None = None
        self._gains: list[Slots] = []
        self._factor = 1.0
        self._steps: list[Place] = []
        self._joins = False
        #: Whether something was added that is not the layer's own bias.
        self._shifted = False
        #: Positions of the operations that were gone through: they are no layers of their own.
        self.passed: list[int] = []

    def layer(self) -> FittedLayer:
        """The layer that a contraction is."""
        self._take_own_bias()
        while self._step():
            pass
        return self._finished()

    def scaling(self, offset: Slots | None, norm: Norm | None) -> FittedLayer:
        """The layer that a gain per channel is, of a norm or alone."""
        self._take_offset(offset)
        while self._step():
            pass
        # Its own statistics are not on the way, so that no step may take them for a norm behind it.
        self._norm = norm
        return self._finished()

    def _take_offset(self, offset: Slots | None) -> None:
        """The offset of a norm, one number for each of its channels."""
        if offset is not None:
            self._bias = Slots(offset.name, offset.index.reshape(-1, 1))

    def _take_own_bias(self) -> None:
        """The bias that the contraction itself adds."""
        argument = self._node.arguments.get(_BIASES.get(self._node.op, ""))
        if argument is None:
            return
        second = self._node.op == "aten.convolution"
        self._bias = self._per_output(argument, channels_second=second)
        self._shifted = self._bias is None

    def _finished(self) -> FittedLayer:
        shape = self._flow.shape(self._node.outputs[0])
        output = torch.empty(shape, device="meta")
        weight = self._system.matrix(self._weight.index)
        return FittedLayer(
            self._weight.name,
            self._flow.places[self._position],
            self._system,
            Slots(self._weight.name, weight),
            self._bias,
            self._norm,
            tuple(self._gains),
            self._factor,
            tuple(self._steps),
            self._joins,
            self._system.counts(output, self._flow.samples)[1],
        )

    def _step(self) -> bool:
        """Go through the next operation; False if the way ends here."""
        position = self._flow.only_user(self._value)
        if position is None:
            return False
        node = self._flow.live[position]
        if node.op in MOVES:
            return self._move(node)
        if not self._passes(node):
            return False
        self._value = node.outputs[0]
        self._steps.append(self._flow.places[position])
        self.passed.append(position)
        return True

    def _passes(self, node: Node) -> bool:
        """Whether one may go on behind an operation."""
        if node.op in BATCH_NORMS:
            return self._batch_norm(node)
        if node.op in ("aten.add", "aten.sub"):
            return self._add(node)
        if node.op in ("aten.mul", "aten.div"):
            return self._multiply(node)
        return False

    def _move(self, node: Node) -> bool:
        if len(node.outputs) != 1:
            return False
        values = (self._value, node.outputs[0])
        shapes = (torch.Size(self._flow.shape(value)) for value in values)
        before, after = (shape.numel() for shape in shapes)
        # A part says nothing of the rest, and copies of one element might be told different things.
        if before != after:
            return False
        index = self._index
        if index is None:
            index = torch.arange(torch.Size(self._shape).numel())
            index = index.reshape(self._shape)
        self._index = replay_move(node, index)
        self._value = node.outputs[0]
        return True

    def _other(self, node: Node) -> tuple[Any, bool]:
        """The operand that is not the present value, and whether it comes second."""
        first, second = node.arguments["self"], node.arguments["other"]
        is_first = isinstance(first, Ref) and first.value == self._value
        return (second, True) if is_first else (first, False)

    def _add(self, node: Node) -> bool:
        other, is_first = self._other(node)
        if isinstance(other, Ref) and other.value == self._value:
            return False
        if self._flow.shape(node.outputs[0]) != self._flow.shape(self._value):
            return False
        if isinstance(other, Ref):
            if self._add_bias(node, other):
                return True
            # What is not final yet cannot be told from what this layer lacks.
            if not self._flow.known_before(other.value, self._position):
                return False
            self._joins |= bool(self._flow.from_data[other.value])
        self._shifted = True
        if not is_first:
            alpha = float(node.arguments.get("alpha", 1))
            self._factor *= -alpha if node.op == "aten.sub" else alpha
        return True

    def _add_bias(self, node: Node, other: Ref) -> bool:
        """Take what is added for the layer's own bias, where it can be that."""
        plain = node.op == "aten.add" and node.arguments.get("alpha", 1) == 1
        if not plain or not self._untouched():
            return False
        self._bias = self._per_output(other)
        return self._bias is not None

    def _untouched(self) -> bool:
        """Whether a bias that is added now is the layer's own."""
        plain = self._norm is None and not self._gains and self._factor == 1
        return plain and self._bias is None and not self._shifted

    def _multiply(self, node: Node) -> bool:
        other, is_first = self._other(node)
        if isinstance(other, Ref):
            return node.op == "aten.mul" and self._multiply_gain(other)
        if not isinstance(other, int | float) or other == 0:
            return False
        if node.op == "aten.mul":
            self._factor *= float(other)
            return True
        # A number divided by the output is not linear, and rounding is not either.
        if not is_first or node.arguments.get("rounding_mode"):
            return False
        self._factor /= float(other)
        return True

    def _multiply_gain(self, other: Ref) -> bool:
        gain = self._per_output(other, exclusive=False)
        # A gain behind a gain is a layer of its own.
        if gain is None or isinstance(self._system, Scaling):
            return False
        self._gains.append(gain)
        return True

    def _batch_norm(self, node: Node) -> bool:
        given = node.arguments
        first = given.get("input")
        if not isinstance(first, Ref) or first.value != self._value:
            return False
        if given.get("training", False) or not self._may_absorb():
            return False
        found = {}
        for name in STATISTICS:
            argument = given.get(name)
            slots = self._per_output(argument, channels_second=True)
            if slots is None and argument is not None:
                return False
            found[name] = slots
        self._norm = norm_of(node, found)
        return self._norm is not None

    def _may_absorb(self) -> bool:
        """A norm is absorbed by a product or convolution and its bias only."""
        taken = self._norm is not None or self._shifted or self._factor != 1
        taken |= bool(self._gains) or isinstance(self._system, Scaling)
        return not taken

    def _per_output(
        self,
        argument: Any,
        *,
        channels_second: bool = False,
        exclusive: bool = True,
    ) -> Slots | None:
        """An operand that has one number for each output of the layer, as slots ``(g, m)``."""
        slots = self._flow.uses.slots(argument)
        if slots is None:
            return None
        if exclusive and not self._flow.uses.exclusive(slots):
            return None
        shape, index = self._flow.shape(self._value), slots.index
        if channels_second:
            index = index.reshape(-1, *[1] * (len(shape) - 2))
        try:
            spread = index.expand(shape)
        except RuntimeError:
            return None
        if self._index is not None:
            # Back to where the layer had put each element.
            flat = torch.empty(spread.numel(), dtype=torch.long)
            flat[self._index.reshape(-1)] = spread.reshape(-1)
            spread = flat.reshape(self._shape)
        samples, positions = self._system.counts(spread, self._flow.samples)
        every = torch.arange(samples * positions)
        rows = Rows(every // positions, every % positions, positions)
        found = self._system.outputs(spread, rows)
        # The same for all rows, and another one for each output.
        if bool((found != found[:1]).any()):
            return None
        if len(torch.unique(found[0])) < found[0].numel():
            return None
        return Slots(slots.name, found[0].clone())
