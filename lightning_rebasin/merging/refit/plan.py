"""Where to solve: read off the tape of one forward pass.

A *fitted layer* is a product or convolution of data with (a part of) one parameter, or a gain per channel.  In a
residual block ``x + bn2(conv2(relu(bn1(conv1(x)))))`` the first convolution is judged behind ``bn1``, the second behind
the addition, so it can repair what the stream got wrong before.  No architecture is named anywhere.

What cannot be solved keeps its average and is named with the reason.  A weight with several uses in one pass, or in a
recurrent cell, has no target of its own that one could solve for at once, since each use changes what the next one
sees.  (To give all its uses together the mean and standard deviation of theirs did more harm than good, as
docs/merging.md tells.)
"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from lightning_rebasin.merging.refit.fitted import (
    FittedLayer,
    Plan,
)
from lightning_rebasin.merging.refit.flow import Flow
from lightning_rebasin.merging.refit.follow import Follower
from lightning_rebasin.merging.refit.gains import Gain, find_gain
from lightning_rebasin.merging.refit.leftovers import (
    Reasons,
    reason_of_use,
)
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.merging.refit.systems import (
    Convolution,
    Product,
    System,
)
from lightning_rebasin.symmetry.trace.contractions import CONTRACTIONS
from lightning_rebasin.symmetry.trace.record import known_tensors
from lightning_rebasin.symmetry.trace.tape import Node, Tape

_RECURRENT = "it belongs to a recurrent cell"
_PRODUCTS = frozenset(("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"))


def make_plan(module: nn.Module, tape: Tape, samples: int) -> Plan:
    """Find the layers that can be solved.

    Args:
        module: The network.
        tape: One forward pass of it in eval mode.
        samples: Size of the batch of that pass.
    """
    return _Planner(module, Flow(tape, samples)).plan()


@final
class _Planner:
    def __init__(self, module: nn.Module, flow: Flow) -> None:
        self._flow = flow
        self._parameters = {
            name: tensor
            for name, tensor in known_tensors(module).items()
            if isinstance(tensor, nn.Parameter)
        }
        self._recurrent = {
            name
            for name, child in module.named_modules()
            if isinstance(child, nn.RNNBase | nn.RNNCellBase)
        }
        #: Operations that belong to the layer in front of them.
        self._absorbed: set[int] = set()
        self._fitted: dict[int, FittedLayer] = {}
        self._reasons = Reasons()

    def plan(self) -> Plan:
        for position, node in self._flow.live.items():
            if node.op in CONTRACTIONS:
                self._contraction(position, node)
            elif node.op == "aten.embedding":
                self._embedding(node)
            elif position not in self._absorbed:
                self._gain(position, node)
        fitted = [layer for _, layer in sorted(self._fitted.items())]
        for name in self._parameters:
            if name.rpartition(".")[0] in self._recurrent:
                self._reasons.add(name, _RECURRENT)
            self._reasons.name_rest(name, fitted, self._flow)
        return Plan(tuple(fitted), self._reasons.left())

    def _contraction(self, position: int, node: Node) -> None:
        """The layer that a contraction is, unless it contracts data with data or weights with weights."""
        names = CONTRACTIONS[node.op]
        refs = [node.arguments[name] for name in names]
        of_data = [bool(self._flow.from_data[ref.value]) for ref in refs]
        if sum(of_data) != 1:
            return
        side = of_data.index(False)
        weight = self._flow.uses.slots(refs[side])
        if weight is None:
            name = node.where.rpartition(" in ")[2] or node.op
            self._reasons.add(name, "its weight is computed from others")
            return
        index = weight.index
        merged = node.op in _PRODUCTS and _all_the_same(index)
        if merged:
            # One weight for a whole stack of products: nothing but more rows.
            weight = Slots(weight.name, index[:1])
        system = _system(node, names, side, index, merged=merged)
        if system is None:
            self._reasons.add(weight.name, f"{node.op} is not solved")
        elif self._may_solve(weight):
            follower = Follower(self._flow, position, system, weight)
            self._fitted[position] = follower.layer()
            self._absorbed.update(follower.passed)

    def _embedding(self, node: Node) -> None:
        table = self._flow.uses.slots(node.arguments["weight"])
        if table is not None:
            reason = (
                "the average of the tables returns the average of the ends"
            )
            self._reasons.add(table.name, reason)

    def _gain(self, position: int, node: Node) -> None:
        """The layer that a norm's gain is, or any other gain per channel."""
        found = find_gain(self._flow, node)
        # A buffer that data are multiplied with is not a layer: a mask, a mean, a rotation by position.
        if found is None or found.gain.name not in self._parameters:
            return
        if not self._may_solve(found.gain):
            return
        follower = Follower(self._flow, position, found.system, found.gain)
        layer = follower.scaling(self._own_offset(found), found.norm)
        self._fitted[position] = layer
        self._absorbed.update(follower.passed)

    def _own_offset(self, found: Gain) -> Slots | None:
        offset = found.offset
        if offset is None or self._obstacle(offset):
            return None
        return offset

    def _may_solve(self, weight: Slots) -> bool:
        """Whether a weight can be solved; the reason is written down if not."""
        reason = self._obstacle(weight)
        if reason:
            self._reasons.add(weight.name, reason)
        return not reason

    def _obstacle(self, weight: Slots) -> str:
        """Why a weight cannot be solved; empty if it can."""
        if weight.name not in self._parameters:
            return "it is a buffer, not a parameter"
        if weight.name.rpartition(".")[0] in self._recurrent:
            return _RECURRENT
        return reason_of_use(self._flow.uses, weight)


def _all_the_same(index: Tensor) -> bool:
    """Whether a stack of operands is one operand many times."""
    return index.ndim == 3 and bool((index == index[:1]).all())


def _system(
    node: Node,
    names: tuple[str, str],
    side: int,
    index: Tensor,
    *,
    merged: bool,
) -> System | None:
    """How a contraction whose operand ``names[side]`` is a weight is read; None if it cannot be."""
    given = node.arguments
    operand, data = names[side], names[1 - side]
    if node.op in _PRODUCTS:
        # Other factors would have to be divided out of weight and bias.
        if given.get("beta", 1) != 1 or given.get("alpha", 1) != 1:
            return None
        return Product(data, operand, side == 0, index.ndim == 3, merged)
    if node.op == "aten.convolution" and operand == "weight":
        return Convolution(
            given["groups"],
            tuple(given["stride"]),
            tuple(given["padding"]),
            tuple(given["dilation"]),
            tuple(index.shape[2:]),
            given["transposed"],
        )
    return None
