"""The dispatch mode that writes the tape.

Every ATen operation passes through :class:`Recorder` after composite operations were decomposed.  Tensors become
numbered values; a write into a view is passed back to the memory behind it, so that the tape never mutates anything.

For example ``w = torch.zeros(2, 3); w[0].fill_(1); y = w.sum()`` becomes

    value 0  constant (2, 3)
    value 1  select(0)              (3,)    a view: the first row of value 0
    value 2  fill(1)                (3,)    what the row holds after the write
    value 3  select(0)              (3,)    the way back to the memory, walked anew; nothing reads it
    value 4  write_back(0, 2)       (2, 3)  the whole tensor after it; ``w`` now stands for value 4
    value 5  sum(4)                 ()

Each tensor object of the run is a *state*: a *root* that owns memory, the *steps* (views) that lead to it, and the
value that it had when it was last looked at.  A write raises the root's version, so stale values are noticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from lightning_rebasin.symmetry.trace.contractions import CONTRACTIONS
from lightning_rebasin.symmetry.trace.tape import (
    Node,
    Origin,
    Ref,
    Tape,
    Value,
    references,
)

#: Largest integer constant whose numbers are kept (indices of shuffles and windows).
_LARGEST_INDEX = 1 << 20


@dataclass
class _Root:
    """A tensor that owns memory: its present value and how often it was written."""

    value: int
    version: int = 0


@dataclass
class _Step:
    """One view operation: ``arguments[base]`` is what it looks at, ``output`` which of its results."""

    node: Node
    base: str
    output: int


@dataclass
class _State:
    """What a tensor object stands for: views ``steps`` of ``root``; ``value`` is right for ``version``."""

    root: _Root
    steps: tuple[_Step, ...]
    value: int
    version: int


@dataclass(frozen=True)
class _Call:
    """One operation that has run: what it is, its node, its arguments as given, which of them it wrote to."""

    func: Any
    node: Node
    given: dict[str, Any]
    writes: tuple[str, ...]
    constant: bool


@dataclass
class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that writes a :class:`~lightning_rebasin.symmetry.trace.tape.Tape`.

    Args:
        known: Parameters and buffers with their names in the state dict.
        constants: Tensors that belong to the model but not to its state (non-persistent buffers, attributes).
    """

    known: Mapping[str, Tensor]
    constants: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self.module_path: list[str] = []
        # Weak: the tape must not keep the activations of a large model alive.
        self._states: WeakIdKeyDictionary = WeakIdKeyDictionary()
        #: How often each contraction ran: what activation addresses count.
        self._runs: Counter[str] = Counter()
        self.saved: list[tuple[Tensor, Tensor]] = []
        self._guarded: dict[int, Tensor] = {}
        for name, tensor in self.known.items():
            self._enter(
                tensor, self.tape.new_value(_value(tensor, "state", name))
            )
            self._guarded[_storage(tensor)] = tensor
        for tensor in self.constants:
            if tensor not in self._states:
                self._enter(
                    tensor, self.tape.new_value(_constant_value(tensor))
                )
                self._guarded[_storage(tensor)] = tensor

    def add_input(self, tensor: Tensor) -> None:
        """Declare an input of the model: every dimension of it is pinned."""
        if tensor not in self._states:
            self._enter(tensor, self.tape.new_value(_value(tensor, "input")))
            self._guarded.setdefault(_storage(tensor), tensor)

    def finish(self, outputs: list[Tensor]) -> Tape:
        """The tape, with the values of ``outputs`` as its results."""
        self.tape.results = [self._read(t) for t in outputs]
        return self.tape

    def _enter(self, tensor: Tensor, value: int) -> _State:
        state = _State(_Root(value), (), value, 0)
        self._states[tensor] = state
        return state

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and write it down."""
        kwargs = dict(kwargs or {})
        if func._can_decompose():
            # in inference mode composite operations (linear, matmul) arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        given = _by_name(func, args, kwargs)
        # torch.tensor([...]) in the model's code arrives here as a literal
        literal = "lift" in func._schema.name
        bound = {
            name: self._refer(value, literal) for name, value in given.items()
        }
        writes = _written(func)
        # Before the operation runs: afterwards the old numbers are gone.
        self._guard([given[name] for name in writes])
        result = func(*args, **kwargs)
        node = self._new_node(func, bound, in_place=bool(writes))
        self._record(
            _Call(func, node, given, writes, self._is_constant(func, bound)),
            result,
        )
        return result

    def _refer(self, argument: Any, literal: bool) -> Any:
        if isinstance(argument, Tensor):
            return Ref(self._read(argument, literal=literal))
        if isinstance(argument, (list, tuple)):
            return [self._refer(item, literal) for item in argument]
        return argument

    def _guard(self, written: list[Any]) -> None:
        """Keep a copy of a parameter, buffer or input that is about to be written."""
        for tensor in tree_flatten(written)[0]:
            if not isinstance(tensor, Tensor):
                continue
            owner = self._guarded.pop(_storage(tensor), None)
            # One copy is enough: it was popped, so later writes find no owner.
            if owner is not None:
                self.saved.append((owner, owner.detach().clone()))

    def _new_node(
        self, func: Any, bound: dict[str, Any], *, in_place: bool
    ) -> Node:
        name = f"{func.namespace}.{func._schema.name.split('::')[1]}"
        # add_ is recorded as add, but __and__ is a name of its own
        if in_place and name.endswith("_") and not name.endswith("__"):
            name = name[:-1]
        node = Node(
            name,
            bound,
            [],
            self._where(name),
            torch.Tag.pointwise in func.tags,
        )
        if name in CONTRACTIONS:
            # Counted for each operation apart, so that a new entry of the table renumbers nothing.
            node.contraction = self._runs[name]
            self._runs[name] += 1
        self.tape.nodes.append(node)
        return node

    def _record(self, call: _Call, result: Any) -> None:
        """Number the results of an operation, and remember whose memory they share."""
        several = isinstance(result, (list, tuple))
        unreturned = set(call.writes)
        for i, tensor in enumerate(result if several else [result]):
            if not isinstance(tensor, Tensor):
                call.node.outputs.append(
                    self.tape.new_value(Value((), "constant"))
                )
                continue
            value = self._output_value(tensor, call.constant)
            call.node.outputs.append(value)
            # A list of tensors is declared once in the schema, a tuple item by item.
            declared = call.func._schema.returns[
                0 if isinstance(result, list) else i
            ]
            source = _aliased(call.func, declared.alias_info)
            owner = call.given.get(source)
            if not isinstance(owner, Tensor):
                # New memory; or an argument itself, undeclared, which keeps its state.
                if tensor not in self._states:
                    self._enter(tensor, value)
            elif declared.alias_info.is_write:
                unreturned.discard(source)
                self._write(self._states[owner], value)
                self._states[tensor] = self._states[owner]
            elif tensor is not owner:
                # A view: its own steps follow those of what it looks at.
                state = self._states[owner]
                steps = (*state.steps, _Step(call.node, source, i))
                self._states[tensor] = _State(
                    state.root, steps, value, state.root.version
                )
        self._record_hidden_writes(call, unreturned)

    def _record_hidden_writes(self, call: _Call, unreturned: set[str]) -> None:
        """Fused operations write without returning: what they wrote is a result of its own."""
        for tensor in tree_flatten(
            [call.given[name] for name in sorted(unreturned)]
        )[0]:
            if isinstance(tensor, Tensor):
                value = self._output_value(tensor, call.constant)
                call.node.outputs.append(value)
                self._write(self._states[tensor], value)

    def _output_value(self, tensor: Tensor, constant: bool) -> int:
        found = (
            _constant_value(tensor)
            if constant
            else _value(tensor, "operation")
        )
        return self.tape.new_value(found)

    def _is_constant(self, func: Any, bound: dict[str, Any]) -> bool:
        """Whether the result depends on no input, parameter or random number."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            return False
        return all(
            self.tape.values[ref.value].origin == "constant"
            for ref in references(bound)
        )

    def _where(self, name: str) -> str:
        inside = self.module_path[-1] if self.module_path else ""
        return f"{name} in {inside}" if inside else name

    def _read(self, tensor: Tensor, *, literal: bool = False) -> int:
        """The present value of a tensor; views of something written since are looked at anew."""
        state = self._states.get(tensor)  # type: ignore[no-untyped-call]
        if state is None:
            return self._enter_unknown(
                tensor, literal or tensor.numel() <= 1
            ).value
        if state.version != state.root.version:
            # Somebody wrote through another view of the same memory.
            state.value = self._walk(state)[-1]
            state.version = state.root.version
        return int(state.value)

    def _enter_unknown(self, tensor: Tensor, literal: bool) -> _State:
        """A tensor that no operation made: an alias of known memory, a literal, or something from outside."""
        owner = self._guarded.get(_storage(tensor)) if tensor.numel() else None
        if (
            owner is not None
            and owner.shape == tensor.shape
            and owner.stride() == tensor.stride()
        ):
            state: _State = self._states[owner]
            self._states[tensor] = state
            return state
        if owner is None and literal:
            return self._enter(
                tensor, self.tape.new_value(_constant_value(tensor))
            )
        return self._enter(
            tensor, self.tape.new_value(_value(tensor, "input"))
        )

    def _walk(self, state: _State) -> list[int]:
        """Values along the views of a state, from the root's present value on."""
        values = [state.root.value]
        for step in state.steps:
            base = values[-1]
            old = [self.tape.values[number] for number in step.node.outputs]
            # A view of a constant that was not written into is still that constant.
            origins = {
                value.origin for value in (self.tape.values[base], *old)
            }
            again = (
                old
                if origins == {"constant"}
                else [_computed_like(value) for value in old]
            )
            outputs = [self.tape.new_value(value) for value in again]
            arguments = {**step.node.arguments, step.base: Ref(base)}
            self.tape.nodes.append(
                Node(step.node.op, arguments, outputs, step.node.where)
            )
            values.append(outputs[step.output])
        return values

    def _write(self, state: _State, value: int) -> None:
        """A tensor now has ``value``; pass it back through its views to the memory behind."""
        new = value
        if state.steps:
            along = self._walk(state)[:-1]
            # From the innermost view outwards: each base is its old self with the piece put in.
            for step, base in zip(
                reversed(state.steps), reversed(along), strict=True
            ):
                new = self._write_back(step, base, new)
        state.root.value = new
        state.root.version += 1
        state.value, state.version = value, state.root.version

    def _write_back(self, step: _Step, base: int, piece: int) -> int:
        """The value of what a view looks at, after the view was written."""
        written = self.tape.new_value(_computed_like(self.tape.values[base]))
        others = {
            name: a
            for name, a in step.node.arguments.items()
            if name != step.base
        }
        arguments = {
            "view": step.node.op,
            "view_arguments": others,
            "output": step.output,
            "base": Ref(base),
            "piece": Ref(piece),
        }
        self.tape.nodes.append(
            Node("tape.write_back", arguments, [written], step.node.where)
        )
        return written


def _by_name(
    func: Any, args: Any, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    given: dict[str, Any] = {}
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in kwargs:
            given[argument.name] = kwargs[argument.name]
        elif i < len(args) and not argument.kwarg_only:
            given[argument.name] = args[i]
        else:
            # Not every argument has a default: asking for one that is not there raises.
            has_default = argument.has_default_value()
            given[argument.name] = (
                argument.default_value if has_default else None
            )
    return given


def _written(func: Any) -> tuple[str, ...]:
    """Names of the arguments that an operation writes to."""
    found = []
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(argument.name)
    return tuple(found)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _value(tensor: Tensor, origin: Origin, name: str = "") -> Value:
    """Describe a tensor whose numbers do not matter."""
    shape = tuple(tensor.shape)
    boolean = tensor.dtype == torch.bool
    return Value(
        shape, origin, name, integral=not _floating(tensor), mask=boolean
    )


def _computed_like(value: Value) -> Value:
    """The result of an operation, of the shape and type of another value."""
    return Value(
        value.shape, "operation", integral=value.integral, mask=value.mask
    )


def _constant_value(tensor: Tensor) -> Value:
    """Describe a constant: along which dimensions its values vary, and its numbers if it may index something."""
    value = _value(tensor, "constant")
    if value.integral and tensor.numel() <= _LARGEST_INDEX:
        value.array = tensor.detach().cpu().numpy().copy()
    varying = []
    for dim, size in enumerate(tensor.shape):
        if size < 2:
            continue
        first = tensor.narrow(dim, 0, 1)
        # Masks hold NaN on purpose, and NaN differs from itself.
        same = (tensor == first) | (tensor.isnan() & first.isnan())
        if not bool(same.all()):
            varying.append(dim)
    value.varying = tuple(varying)
    return value


def _aliased(func: Any, info: Any) -> str:
    """Name of the argument whose memory a result shares; empty if it has its own."""
    if info is None:
        return ""
    for argument in func._schema.arguments:
        if (
            argument.alias_info is not None
            and argument.alias_info.before_set & info.before_set
        ):
            return str(argument.name)
    return ""
