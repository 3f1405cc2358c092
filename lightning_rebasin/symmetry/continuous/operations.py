"""One operation as the walk of a group through a tape sees it, and families of operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, final

from lightning_rebasin.symmetry.continuous.carrying import (
    Carrying,
    Met,
    Seat,
)
from lightning_rebasin.symmetry.trace.tape import (
    Node,
    Ref,
    Tape,
    Value,
)

#: Whatever a walk does at an operation.
Handler = TypeVar("Handler")


def names(*lines: str) -> frozenset[str]:
    """ATen names, separated by spaces."""
    return frozenset(f"aten.{name}" for line in lines for name in line.split())


def by_operation(
    families: Iterable[tuple[Iterable[str], Handler]],
) -> dict[str, Handler]:
    """What handles each operation, of what handles each family.

    Args:
        families: Names of operations with what handles all of them.

    Example:
        >>> by_operation([(("aten.mul", "aten.div"), "product"), (("aten.add",), "sum")])
        {'aten.mul': 'product', 'aten.div': 'product', 'aten.add': 'sum'}
    """
    found: dict[str, Handler] = {}
    for operations, handler in families:
        found.update(dict.fromkeys(operations, handler))
    return found


#: Numbers come out as they went in, at other places, more or less often, or 0 in some places.
COPIES = names(
    "alias detach view_as contiguous _unsafe_view view reshape _reshape_alias unflatten flatten",
    "t transpose permute unsqueeze squeeze expand expand_as broadcast_to repeat movedim",
    "clone _to_copy to type_as lift_fresh lift copy neg positive",
    "select slice split split_with_sizes chunk unbind narrow unfold diagonal tril triu",
    "index_select index gather embedding flip roll repeat_interleave constant_pad_nd",
    "native_dropout dropout cumsum unsafe_split unsafe_chunk slice_backward",
)
#: Operands are put beside each other or added: what they carry must change alike.
SUMS = names("add sub rsub cat stack") | {"tape.write_back"}
#: Nothing but zeros comes out, which every linear map leaves as they are.
ZEROS = names("zeros_like new_zeros")
PRODUCTS = names("mul div")
#: For each contraction its two operands and what is added to the result.
CONTRACTED: dict[str, tuple[str, str, str]] = {
    "aten.mm": ("self", "mat2", ""),
    "aten.bmm": ("self", "mat2", ""),
    "aten.mv": ("self", "vec", ""),
    "aten.dot": ("self", "tensor", ""),
    "aten.addmm": ("mat1", "mat2", "self"),
    "aten.addmv": ("mat", "vec", "self"),
    "aten.baddbmm": ("batch1", "batch2", "self"),
    "aten.convolution": ("input", "weight", "bias"),
}
ATTENTION = names(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    "scaled_dot_product_attention _scaled_dot_product_attention_math",
)
REDUCTIONS = names("sum mean nansum nanmean")
SPREADS = names("var std var_mean std_mean")
LENGTHS = names("linalg_vector_norm norm")
LAYER_NORMS = names("native_layer_norm layer_norm")
RMS_NORMS = names("_fused_rms_norm rms_norm")
BATCH_NORMS = names(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional _batch_norm_with_update _batch_norm_no_update",
    "batch_norm cudnn_batch_norm miopen_batch_norm",
)
WEIGHT_NORMS = names("_weight_norm_interface")


class Limit(Exception):  # noqa: N818 - it says what is the case, and no user ever sees it
    """An operation does not commute with a kind of symmetry; the message says why, for the user.

    Args:
        why: The message.
        weight: The tensor that is used twice, if that is why: where its two uses have names of their own, separate
            tensors would lift the limit.
    """

    def __init__(self, why: str, weight: str = "") -> None:
        super().__init__(why)
        self.weight = weight


@final
@dataclass(frozen=True)
class Step:
    """One operation, seen by one group.

    Args:
        tape: The tape.
        met: The operation.
        carrying: Which groups its values carry.
        group: The group that walks.
        size: How many units one instance of it has.
        number: Number of the example.
    """

    tape: Tape
    met: Met
    carrying: Carrying
    group: str
    size: int
    number: int

    @property
    def node(self) -> Node:
        """The operation."""
        return self.met.node

    @property
    def operands(self) -> tuple[int, ...]:
        """Values of all tensor arguments with numbers that count."""
        return self.met.operands

    def seat(self, value: int) -> Seat | None:
        """Where a value carries the group."""
        return self.carrying.of(value).get(self.group)

    def value(self, number: int) -> Value:
        """What the tape says about a value."""
        return self.tape.values[number]

    def ref(self, argument: str) -> int | None:
        """The value of a tensor argument; ``None`` if it is not there or not a tensor."""
        if not argument:
            return None
        given = self.node.arguments.get(argument)
        if isinstance(given, Ref):
            return given.value
        return None

    def carried(self, argument: str) -> int | None:
        """The value of a tensor argument that carries the group."""
        value = self.ref(argument)
        if value is None or self.seat(value) is None:
            return None
        return value

    @cached_property
    def carriers(self) -> tuple[int, ...]:
        """Operands that carry the group."""
        return tuple(v for v in self.operands if self.seat(v) is not None)

    @cached_property
    def others(self) -> tuple[int, ...]:
        """Operands that do not."""
        return tuple(v for v in self.operands if self.seat(v) is None)

    @cached_property
    def results(self) -> tuple[int, ...]:
        """Results that carry the group."""
        return tuple(v for v in self.node.outputs if self.seat(v) is not None)

    @property
    def op(self) -> str:
        """Which operation it is."""
        return self.node.op

    @property
    def name(self) -> str:
        """The operation and where it ran, for messages."""
        return self.node.where

    def number_argument(self, name: str, default: float) -> Any:
        """An argument that is a Python number."""
        given = self.node.arguments.get(name)
        return default if given is None else given

    def has_added_number(self) -> bool:
        """Whether a Python number other than 0 is added to every unit."""
        given = self.node.arguments.get("other")
        return isinstance(given, int | float) and given != 0

    def reduces_whole_instances(self, value: int) -> bool:
        """Whether a reduction runs over all units of each instance, or over all instances together."""
        seat = self.seat(value)
        if seat is None or not seat.whole:
            return False
        shape = self.value(value).shape
        reduced = self._reduced_dims(len(shape))
        return self._are_whole(seat, shape, reduced)

    def normalises_whole_instances(self, value: int) -> bool:
        """Whether the last dimensions that a layer norm looks at are the units of one instance, or of all."""
        seat = self.seat(value)
        if seat is None or not seat.whole:
            return False
        given: Sequence[int] = self.node.arguments["normalized_shape"]
        shape = self.value(value).shape
        if shape[-len(given) :] != tuple(given):
            return False
        last = range(len(shape) - len(given), len(shape))
        # What stands beside the units is normalised with them.
        others = [shape[dim] for dim in last if dim not in seat.dims]
        return math.prod(others) == 1 and self._are_whole(seat, shape, last)

    def _are_whole(
        self, seat: Seat, shape: Sequence[int], dims: Iterable[int]
    ) -> bool:
        """Whether some dimensions hold the units of one instance, or everything that there is of the group."""
        looked_at = set(dims)
        if seat.dims <= looked_at:
            return True
        sizes = [shape[dim] for dim in looked_at & seat.dims]
        return math.prod(sizes) == self.size

    def _reduced_dims(self, ndim: int) -> list[int]:
        given = self.node.arguments.get("dim")
        if given is None or given == []:
            return list(range(ndim))
        listed = given if isinstance(given, list | tuple) else [given]
        return [int(dim) % ndim for dim in listed]


def steps_of(
    tapes: Sequence[tuple[Tape, Carrying]], group: str, size: int
) -> Iterator[Step]:
    """All operations that have to do with a group, in order, tape by tape.

    Args:
        tapes: The tapes with what their values carry.
        group: Its id.
        size: Units in one instance.
    """
    for number, (tape, carrying) in enumerate(tapes):
        for met in carrying.touching(group):
            yield Step(tape, met, carrying, group, size, number)
