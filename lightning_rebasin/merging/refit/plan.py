"""Where to solve: read off the tape of one forward pass.

A *fitted layer* is a product or convolution of data with (a part of) one parameter.  Its output is followed through
what can be undone or foreseen, as long as nobody else looks at it:

* moves of elements, and factors that are plain numbers;
* the addition of a bias, which becomes the intercept, and a gain per output, which is divided out again;
* a batch norm in front of everything else: it is linear in eval mode, and is absorbed into the fit;
* additions of anything that is known by then, that is, depends on earlier layers only: the layer *joins a stream*.

Where this ends the layer is judged: there the ends' outputs are the target.  In a residual block
``x + bn2(conv2(relu(bn1(conv1(x)))))`` the first convolution is judged behind ``bn1``, the second behind the addition,
so it can repair what the stream got wrong before.  No architecture is named anywhere.

The gains and offsets of other norms (layer, group and RMS norms, batch norms behind something else) are layers too, of
one input and one output per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.places import (
    MOVES,
    Place,
    number,
    replay_move,
)
from lightning_rebasin.merging.refit.slots import Slots, StateUses
from lightning_rebasin.merging.refit.systems import (
    Convolution,
    Product,
    Rows,
    Scaling,
    System,
)
from lightning_rebasin.symmetry.trace.contractions import CONTRACTIONS
from lightning_rebasin.symmetry.trace.record import known_tensors
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, references

_PRODUCTS = frozenset(("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"))
_NORMS_OF_LAST = frozenset(("aten.native_layer_norm", "aten._fused_rms_norm"))
_NORMS = _NORMS_OF_LAST | {"aten.native_group_norm"}
_BATCH_NORMS = frozenset(
    (
        "aten._native_batch_norm_legit_no_training",
        "aten.native_batch_norm",
        "aten.cudnn_batch_norm",
        "aten.miopen_batch_norm",
    )
)


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


@dataclass(frozen=True)
class LeftLayer:
    """A layer that is not solved, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The layers of a network in the order in which they run."""

    fitted: tuple[FittedLayer, ...]
    left: tuple[LeftLayer, ...]


def _own_statistics(planner: _Planner, node: Node) -> Norm | None:
    """The statistics of a batch norm that stands for itself."""
    if node.op not in _BATCH_NORMS:
        return None
    given = node.arguments
    found = []
    for name in ("running_mean", "running_var", "weight", "bias"):
        slots = planner.uses.slots(given.get(name))
        if slots is not None:
            slots = Slots(slots.name, slots.index.reshape(-1, 1))
        found.append(slots)
    mean, variance, gain, offset = found
    if mean is None or variance is None:
        return None
    epsilon = float(given.get("eps", given.get("epsilon", 0.0)))
    return Norm(mean, variance, gain, offset, epsilon)


def make_plan(module: nn.Module, tape: Tape, samples: int) -> Plan:
    """Find the layers that can be solved.

    Args:
        module: The network.
        tape: One forward pass of it in eval mode.
        samples: Size of the batch of that pass.
    """
    return _Planner(module, tape, samples).plan()


@final
class _Planner:
    def __init__(self, module: nn.Module, tape: Tape, samples: int) -> None:
        self.tape = tape
        self.samples = samples
        self.places = number(tape)
        self.parameters = {
            name
            for name, tensor in known_tensors(module).items()
            if isinstance(tensor, nn.Parameter)
        }
        self.recurrent = {
            name
            for name, child in module.named_modules()
            if isinstance(child, nn.RNNBase | nn.RNNCellBase)
        }
        live = {id(node) for node in tape.live_nodes()[0]}
        self.live: dict[int, Node] = {}
        for position, node in enumerate(tape.nodes):
            if id(node) in live:
                self.live[position] = node
        self.uses = StateUses(tape, self.live)
        self.from_data = tape.from_data()
        self.consumers: dict[int, list[int]] = {}
        for position, node in self.live.items():
            for value in {ref.value for ref in references(node.arguments)}:
                self.consumers.setdefault(value, []).append(position)
        self.latest = self._latest_layers()
        #: Norms that belong to the layer in front of them.
        self.absorbed: set[int] = set()

    def plan(self) -> Plan:
        fitted: list[FittedLayer] = []
        left: list[LeftLayer] = []
        for position, node in self.live.items():
            found: FittedLayer | LeftLayer | None = None
            if node.op in CONTRACTIONS:
                found = self._layer(position, node)
            elif node.op == "aten.embedding":
                found = self._embedding(node)
            elif position not in self.absorbed:
                found = self._scaling(position, node)
            if isinstance(found, FittedLayer):
                fitted.append(found)
            elif found is not None:
                left.append(found)
        return Plan(tuple(fitted), tuple(left))

    def _latest_layers(self) -> dict[int, int]:
        """For every value the last operation behind it that may be a layer, -1 for none."""
        latest: dict[int, int] = {}
        for position, node in self.live.items():
            before = -1
            weighted = False
            for ref in references(node.arguments):
                before = max(before, latest.get(ref.value, -1))
                weighted |= self.uses.slots(ref) is not None
            if weighted and node.op not in MOVES:
                before = max(before, position)
            for value in node.outputs:
                latest[value] = before
        return latest

    def _layer(
        self, position: int, node: Node
    ) -> FittedLayer | LeftLayer | None:
        """The layer that a contraction is; None if it contracts data with data or weights with weights."""
        names = CONTRACTIONS[node.op]
        refs = [node.arguments[name] for name in names]
        of_data = [bool(self.from_data[ref.value]) for ref in refs]
        if sum(of_data) != 1:
            return None
        side = of_data.index(False)
        operand, data = names[side], names[1 - side]
        weight = self.uses.slots(refs[side])
        if weight is None:
            name = node.where.rpartition(" in ")[2] or node.op
            return LeftLayer(name, "its weight is computed from others")
        index = weight.index
        merged = index.ndim == 3 and bool((index == index[:1]).all())
        if merged and node.op in _PRODUCTS:
            # One weight for a whole stack of products: nothing but more rows.
            weight = Slots(weight.name, index[:1])
        reason = self._obstacle(weight)
        if reason:
            return LeftLayer(weight.name, reason)
        system = self._system(node, data, operand, index, merged=merged)
        if system is None:
            return LeftLayer(weight.name, f"{node.op} is not solved")
        return _Follower(self, position, node, system, weight).layer()

    def _obstacle(self, weight: Slots) -> str:
        """Why a weight cannot be solved; empty if it can."""
        if weight.name not in self.parameters:
            return "it is a buffer, not a parameter"
        if weight.name.rpartition(".")[0] in self.recurrent:
            return "it belongs to a recurrent cell"
        if not self.uses.exclusive(weight):
            uses = self.uses.uses(weight)
            if uses > 1:
                return f"its weight is used {uses} times in one pass"
            return "one number of its weight stands in several places"
        return ""

    def _embedding(self, node: Node) -> LeftLayer | None:
        table = self.uses.slots(node.arguments["weight"])
        if table is None:
            return None
        reason = "the average of the tables returns the average of the ends"
        return LeftLayer(table.name, reason)

    def _scaling(
        self, position: int, node: Node
    ) -> FittedLayer | LeftLayer | None:
        """The layer that a norm's gain is, or any other gain per channel."""
        found = self._gain(node)
        if found is None:
            return None
        gain, offset, system = found
        reason = self._obstacle(gain)
        if reason:
            return LeftLayer(gain.name, reason)
        if offset is not None and self._obstacle(offset):
            offset = None
        follower = _Follower(self, position, node, system, gain)
        follower.norm = _own_statistics(self, node)
        return follower.scaling(offset)

    def _gain(self, node: Node) -> tuple[Slots, Slots | None, Scaling] | None:  # noqa: PLR0911
        """Gain, offset and channels of a norm or of a product with a parameter."""
        given = node.arguments
        value = node.outputs[0]
        shape = self.tape.values[value].shape
        if not self.from_data[value]:
            return None
        if node.op == "aten.mul":
            return self._multiplied(given, shape)
        if node.op not in _NORMS and node.op not in _BATCH_NORMS:
            return None
        if given.get("training") or given.get("weight") is None:
            return None
        gain = self.uses.slots(given["weight"])
        offset = self.uses.slots(given.get("bias"))
        if gain is None:
            return None
        if node.op in _NORMS_OF_LAST:
            first = len(shape) - gain.index.ndim
            return gain, offset, Scaling(first, -1, len(shape))
        return gain, offset, Scaling(1, 1 - len(shape), len(shape))

    def _multiplied(
        self, given: Mapping[str, Any], shape: tuple[int, ...]
    ) -> tuple[Slots, Slots | None, Scaling] | None:
        slots = [self.uses.slots(given[name]) for name in ("self", "other")]
        found = [slot for slot in slots if slot is not None]
        if len(found) != 1 or found[0].name not in self.parameters:
            return None
        index = found[0].index
        skipped = len(shape) - index.ndim
        channels = [
            skipped + d for d, size in enumerate(index.shape) if size > 1
        ]
        whole = all(shape[d] == index.shape[d - skipped] for d in channels)
        if not channels or not whole:
            return None
        first, last = channels[0], channels[-1]
        if channels != list(range(first, last + 1)):
            return None
        return found[0], None, Scaling(first, last - len(shape), len(shape))

    def _system(
        self,
        node: Node,
        data: str,
        operand: str,
        index: Tensor,
        *,
        merged: bool,
    ) -> System | None:
        if node.op in _PRODUCTS:
            plain = node.arguments.get("beta", 1) == 1
            if not plain or node.arguments.get("alpha", 1) != 1:
                return None
            left = operand == CONTRACTIONS[node.op][0]
            batched = index.ndim == 3
            return Product(data, operand, left, batched, merged)
        if node.op == "aten.convolution" and operand == "weight":
            given = node.arguments
            return Convolution(
                given["groups"],
                tuple(given["stride"]),
                tuple(given["padding"]),
                tuple(given["dilation"]),
                tuple(index.shape[2:]),
                given["transposed"],
            )
        return None


@final
class _Follower:
    """Follows the output of one layer to where it is judged."""

    def __init__(
        self,
        planner: _Planner,
        position: int,
        node: Node,
        system: System,
        weight: Slots,
    ) -> None:
        self.planner = planner
        self.position = position
        self.node = node
        self.system = system
        self.weight = weight
        self.value = node.outputs[0]
        self.shape = planner.tape.values[self.value].shape
        #: Where each element of the present value stood in the layer's output; None: nothing was moved.
        self.index: Tensor | None = None
        self.bias: Slots | None = None
        self.norm: Norm | None = None
        self.gains: list[Slots] = []
        self.factor = 1.0
        self.steps: list[Place] = []
        self.joins = False
        #: Whether something was added that is not the layer's own bias.
        self.shifted = False

    def layer(self) -> FittedLayer | LeftLayer:
        own = self.node.arguments.get("bias", self.node.arguments.get("self"))
        if self.node.op in ("aten.addmm", "aten.baddbmm", "aten.convolution"):  # noqa: SIM102
            if own is not None:
                second = self.node.op == "aten.convolution"
                self.bias = self._per_output(own, channels_second=second)
                self.shifted = self.bias is None
        while self._step():
            pass
        return self._finished()

    def scaling(self, offset: Slots | None) -> FittedLayer:
        """The layer that a gain per channel is."""
        if offset is not None:
            index = offset.index.reshape(-1, 1)
            self.bias = Slots(offset.name, index)
        norm, self.bias = self.norm, self.bias
        while self._step():
            pass
        self.norm = norm
        return self._finished()

    def _finished(self) -> FittedLayer:
        shape = self.planner.tape.values[self.node.outputs[0]].shape
        positions = self.system.counts(
            torch.empty(shape, device="meta"), self.planner.samples
        )[1]
        weight = Slots(self.weight.name, self.system.matrix(self.weight.index))
        return FittedLayer(
            self.weight.name,
            self.planner.places[self.position],
            self.system,
            weight,
            self.bias,
            self.norm,
            tuple(self.gains),
            self.factor,
            tuple(self.steps),
            self.joins,
            positions,
        )

    def _step(self) -> bool:
        """Go through the next operation; False if the way ends here."""
        planner = self.planner
        users = planner.consumers.get(self.value, [])
        if len(users) != 1 or self.value in planner.tape.results:
            return False
        position, node = users[0], planner.live[users[0]]
        if node.op in MOVES:
            return self._move(node)
        if node.op in _BATCH_NORMS:
            passed = self._batch_norm(node)
        elif node.op in ("aten.add", "aten.sub"):
            passed = self._add(node)
        elif node.op in ("aten.mul", "aten.div"):
            passed = self._multiply(node)
        else:
            return False
        if passed:
            self.value = node.outputs[0]
            self.steps.append(planner.places[position])
            planner.absorbed.add(position)
        return passed

    def _move(self, node: Node) -> bool:
        values = self.planner.tape.values
        before = values[self.value].shape
        if len(node.outputs) != 1:
            return False
        after = values[node.outputs[0]].shape
        if torch.Size(before).numel() != torch.Size(after).numel():
            return False
        index = self.index
        if index is None:
            index = torch.arange(torch.Size(self.shape).numel())
            index = index.reshape(self.shape)
        self.index = replay_move(node, index)
        self.value = node.outputs[0]
        return True

    def _add(self, node: Node) -> bool:
        given = node.arguments
        first, second = given["self"], given["other"]
        is_first = isinstance(first, Ref) and first.value == self.value
        other = second if is_first else first
        if isinstance(other, Ref) and other.value == self.value:
            return False
        values = self.planner.tape.values
        shape = values[self.value].shape
        if values[node.outputs[0]].shape != shape:
            return False
        sign = 1.0 if is_first else float(given.get("alpha", 1))
        if node.op == "aten.sub" and not is_first:
            sign = -sign
        if isinstance(other, Ref):
            plain = node.op == "aten.add" and given.get("alpha", 1) == 1
            if plain and self._untouched():
                bias = self._per_output(other)
                if bias is not None:
                    self.bias = bias
                    return True
            if self.planner.latest.get(other.value, -1) > self.position:
                return False
            self.joins |= bool(self.planner.from_data[other.value])
        self.shifted = True
        self.factor *= sign
        return True

    def _untouched(self) -> bool:
        """Whether a bias that is added now is the layer's own."""
        plain = self.norm is None and not self.gains and self.factor == 1
        return plain and self.bias is None and not self.shifted

    def _multiply(self, node: Node) -> bool:
        given = node.arguments
        first, second = given["self"], given["other"]
        is_first = isinstance(first, Ref) and first.value == self.value
        other = second if is_first else first
        if isinstance(other, Ref) and node.op == "aten.mul":
            gain = self._per_output(other, exclusive=False)
            if gain is None or isinstance(self.system, Scaling):
                return False
            self.gains.append(gain)
            return True
        if not isinstance(other, int | float) or other == 0:
            return False
        if node.op == "aten.div":
            if not is_first or given.get("rounding_mode"):
                return False
            other = 1 / other
        self.factor *= float(other)
        return True

    def _batch_norm(self, node: Node) -> bool:
        given = node.arguments
        first = given.get("input")
        training = given.get("training", False)
        taken = self.norm is not None or self.shifted or self.factor != 1
        taken |= bool(self.gains) or isinstance(self.system, Scaling)
        if not isinstance(first, Ref) or first.value != self.value:
            return False
        if training or taken:
            return False
        found = []
        for name in ("running_mean", "running_var", "weight", "bias"):
            argument = given.get(name)
            slots = self._per_output(argument, channels_second=True)
            if slots is None and argument is not None:
                return False
            found.append(slots)
        mean, variance, gain, offset = found
        if mean is None or variance is None:
            return False
        epsilon = float(given.get("eps", given.get("epsilon", 0.0)))
        self.norm = Norm(mean, variance, gain, offset, epsilon)
        return True

    def _per_output(
        self,
        argument: Any,
        *,
        channels_second: bool = False,
        exclusive: bool = True,
    ) -> Slots | None:
        """An operand that has one number for each output of the layer, as slots ``(g, m)``."""
        planner = self.planner
        slots = planner.uses.slots(argument)
        if slots is None:
            return None
        if exclusive and not planner.uses.exclusive(slots):
            return None
        shape = planner.tape.values[self.value].shape
        index = slots.index
        if channels_second:
            index = index.reshape(-1, *[1] * (len(shape) - 2))
        try:
            spread = index.expand(shape)
        except RuntimeError:
            return None
        if self.index is not None:
            flat = torch.empty(spread.numel(), dtype=torch.long)
            flat[self.index.reshape(-1)] = spread.reshape(-1)
            spread = flat.reshape(self.shape)
        samples, positions = self.system.counts(spread, planner.samples)
        every = torch.arange(samples * positions)
        rows = Rows(every // positions, every % positions, positions)
        found = self.system.outputs(spread, rows)
        # The same for all rows, and another one for each output.
        if bool((found != found[:1]).any()):
            return None
        if len(torch.unique(found[0])) < found[0].numel():
            return None
        return Slots(slots.name, found[0].clone())
