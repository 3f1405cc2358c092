"""Gains per channel that are layers of their own.

The gains and offsets of layer, group and RMS norms, and of batch norms that no layer in front absorbs, are solved as
layers of one input and one output per channel; so is any other product with a parameter that has one number per
channel.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_rebasin.merging.refit.fitted import Norm
from lightning_rebasin.merging.refit.flow import Flow
from lightning_rebasin.merging.refit.norms import (
    BATCH_NORMS,
    STATISTICS,
    norm_of,
)
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.merging.refit.systems import Scaling
from lightning_rebasin.symmetry.trace.tape import Node

#: Norms whose gain has the shape of the last dimensions.
_OF_LAST = frozenset(("aten.native_layer_norm", "aten._fused_rms_norm"))
_NORMS = _OF_LAST | BATCH_NORMS | {"aten.native_group_norm"}


@dataclass(frozen=True, eq=False)
class Gain:
    """A gain per channel.

    Args:
        gain: The gain as it stands in the operation.
        offset: What the same operation adds.
        system: Which dimensions are channels.
        norm: The statistics of a batch norm.
    """

    gain: Slots
    offset: Slots | None
    system: Scaling
    norm: Norm | None = None


def find_gain(flow: Flow, node: Node) -> Gain | None:
    """The gain that an operation multiplies data with; None if it does not."""
    if not flow.from_data[node.outputs[0]]:
        return None
    if node.op == "aten.mul":
        return _multiplied(flow, node)
    if node.op in _NORMS and not node.arguments.get("training"):
        return _of_norm(flow, node)
    return None


def _of_norm(flow: Flow, node: Node) -> Gain | None:
    given = node.arguments
    gain = flow.uses.slots(given.get("weight"))
    offset = flow.uses.slots(given.get("bias"))
    if gain is None:
        return None
    dims = len(flow.shape(node.outputs[0]))
    if node.op in _OF_LAST:
        system = Scaling(dims - gain.index.ndim, -1, dims)
    else:
        system = Scaling(1, 1 - dims, dims)
    return Gain(gain, offset, system, _own_statistics(flow, node))


def _multiplied(flow: Flow, node: Node) -> Gain | None:
    """A product with a parameter, as the gains of residual branches and hand-written norms are."""
    arguments = [node.arguments[name] for name in ("self", "other")]
    slots = [flow.uses.slots(argument) for argument in arguments]
    found = [slot for slot in slots if slot is not None]
    if len(found) != 1:
        return None
    shape = flow.shape(node.outputs[0])
    channels = _channels(found[0].index, shape)
    if channels is None:
        return None
    first, last = channels
    system = Scaling(first, last - len(shape), len(shape))
    return Gain(found[0], None, system)


def _channels(index: Tensor, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """First and last of the dimensions along which a gain varies; None unless they are neighbours."""
    skipped = len(shape) - index.ndim
    varying = [d for d, size in enumerate(index.shape) if size > 1]
    if not varying or varying[-1] - varying[0] >= len(varying):
        return None
    return skipped + varying[0], skipped + varying[-1]


def _own_statistics(flow: Flow, node: Node) -> Norm | None:
    """The statistics of a batch norm that stands for itself."""
    if node.op not in BATCH_NORMS:
        return None
    found = {}
    for name in STATISTICS:
        slots = flow.uses.slots(node.arguments.get(name))
        if slots is not None:
            slots = Slots(slots.name, slots.index.reshape(-1, 1))
        found[name] = slots
    return norm_of(node, found)
