"""The dispatch mode that writes the tape.

Every ATen operation passes through :class:`Recorder` after composite operations were decomposed.  Tensors become
numbered values; a write into a view is passed back to the memory behind it, so that the tape never mutates anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from lightning_rebasin.symmetry.trace.contractions import CONTRACTIONS
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, Value, references

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
        self._states: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._contractions = 0
        self.saved: list[tuple[Tensor, Tensor]] = []
        self._guarded: dict[int, Tensor] = {}
        for name, tensor in self.known.items():
            value = Value(
                tuple(tensor.shape),
                "state",
                name,
                integral=not _floating(tensor),
                mask=tensor.dtype == torch.bool,
            )
            self._enter(tensor, self.tape.new_value(value))
            self._guarded[_storage(tensor)] = tensor
        for tensor in self.constants:
            if tensor not in self._states:
                self._enter(tensor, self.tape.new_value(_constant_value(tensor)))
                self._guarded[_storage(tensor)] = tensor

    def add_input(self, tensor: Tensor) -> None:
        """Declare an input of the model: every dimension of it is pinned."""
        if tensor not in self._states:
            value = Value(
                tuple(tensor.shape),
                "input",
                integral=not _floating(tensor),
                mask=tensor.dtype == torch.bool,
            )
            self._enter(tensor, self.tape.new_value(value))
            self._guarded.setdefault(_storage(tensor), tensor)

    def finish(self, outputs: list[Tensor]) -> Tape:
        """The tape, with the values of ``outputs`` as its results."""
        self.tape.results = [self._read(t) for t in outputs]
        return self.tape

    def _enter(self, tensor: Tensor, value: int) -> _State:
        state = _State(_Root(value), (), value, 0)
        self._states[tensor] = state
        return state

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and write it down."""
        kwargs = dict(kwargs or {})
        if func._can_decompose():
            # in inference mode composite operations (linear, matmul) arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        bound, given = self._bind(func, args, kwargs)
        writes = [
            a.name
            for a in func._schema.arguments
            if a.alias_info is not None and a.alias_info.is_write
        ]
        self._guard([given[name] for name in writes])
        result = func(*args, **kwargs)
        self._record(func, bound, given, result, writes)
        return result

    def _bind(self, func: Any, args: Any, kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments by name, once with tensors as references and once as they are."""
        given: dict[str, Any] = {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.name in kwargs:
                given[argument.name] = kwargs[argument.name]
            elif i < len(args) and not argument.kwarg_only:
                given[argument.name] = args[i]
            else:
                given[argument.name] = (
                    argument.default_value if argument.has_default_value() else None
                )
        # torch.tensor([...]) in the model's code arrives here as a literal
        literal = "lift" in func._schema.name
        return {name: self._refer(value, literal) for name, value in given.items()}, given

    def _refer(self, argument: Any, literal: bool) -> Any:
        if isinstance(argument, Tensor):
            return Ref(self._read(argument, literal=literal))
        if isinstance(argument, (list, tuple)):
            return [self._refer(item, literal) for item in argument]
        return argument

    def _guard(self, written: list[Any]) -> None:
        """Keep a copy of a parameter, buffer or input that is about to be written."""
        for tensor in tree_flatten(written)[0]:
            owner = (
                self._guarded.pop(_storage(tensor), None) if isinstance(tensor, Tensor) else None
            )
            if owner is not None:
                self.saved.append((owner, owner.detach().clone()))

    def _record(
        self,
        func: Any,
        bound: dict[str, Any],
        given: dict[str, Any],
        result: Any,
        writes: list[str],
    ) -> None:
        name = f"{func.namespace}.{func._schema.name.split('::')[1]}"
        if writes and name.endswith("_") and not name.endswith("__"):
            name = name[:-1]
        constant = self._is_constant(func, bound)
        node = Node(name, bound, [], self._where(name), torch.Tag.pointwise in func.tags)
        if name in CONTRACTIONS:
            node.contraction = self._contractions
            self._contractions += 1
        self.tape.nodes.append(node)
        returns = func._schema.returns
        nested = isinstance(result, list)
        unreturned = set(writes)
        for i, tensor in enumerate(result if isinstance(result, (list, tuple)) else [result]):
            if not isinstance(tensor, Tensor):
                node.outputs.append(self.tape.new_value(Value((), "constant")))
                continue
            value = self._output_value(tensor, constant)
            node.outputs.append(value)
            info = returns[0 if nested else i].alias_info
            source = _aliased(func, info) if info is not None else ""
            owner = given.get(source)
            if not isinstance(owner, Tensor) or info is None:
                if tensor not in self._states:
                    self._enter(tensor, value)
            elif info.is_write:
                unreturned.discard(source)
                self._write(self._states[owner], value)
                self._states[tensor] = self._states[owner]
            elif tensor is not owner:
                state = self._states[owner]
                steps = (*state.steps, _Step(node, source, i))
                self._states[tensor] = _State(state.root, steps, value, state.root.version)
        # fused operations write without returning: their values are unknown
        for tensor in tree_flatten([given[name] for name in sorted(unreturned)])[0]:
            if isinstance(tensor, Tensor):
                node.outputs.append(self._output_value(tensor, constant))
                self._write(self._states[tensor], node.outputs[-1])

    def _output_value(self, tensor: Tensor, constant: bool) -> int:
        if constant:
            return self.tape.new_value(_constant_value(tensor))
        return self.tape.new_value(
            Value(
                tuple(tensor.shape),
                "operation",
                integral=not _floating(tensor),
                mask=tensor.dtype == torch.bool,
            )
        )

    def _is_constant(self, func: Any, bound: dict[str, Any]) -> bool:
        """Whether the result depends on no input, parameter or random number."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            return False
        return all(self.tape.values[ref.value].origin == "constant" for ref in references(bound))

    def _where(self, name: str) -> str:
        return (
            f"{name} in {self.module_path[-1]}"
            if self.module_path and self.module_path[-1]
            else name
        )

    def _read(self, tensor: Tensor, *, literal: bool = False) -> int:
        """The present value of a tensor; views of something written since are looked at anew."""
        state = self._states.get(tensor)  # type: ignore[no-untyped-call]
        if state is None:
            return self._enter_unknown(tensor, literal or tensor.numel() <= 1).value
        if state.version != state.root.version:
            state.value = self._walk(state)[-1]
            state.version = state.root.version
        return int(state.value)

    def _enter_unknown(self, tensor: Tensor, literal: bool) -> _State:
        """A tensor that no operation made: an alias of known memory, a literal, or something from outside."""
        owner = self._guarded.get(_storage(tensor)) if tensor.numel() else None
        if owner is not None and owner.shape == tensor.shape and owner.stride() == tensor.stride():
            state: _State = self._states[owner]
            self._states[tensor] = state
            return state
        if owner is None and literal:
            return self._enter(tensor, self.tape.new_value(_constant_value(tensor)))
        value = Value(
            tuple(tensor.shape),
            "input",
            integral=not _floating(tensor),
            mask=tensor.dtype == torch.bool,
        )
        return self._enter(tensor, self.tape.new_value(value))

    def _walk(self, state: _State) -> list[int]:
        """Values along the views of a state, from the root's present value on."""
        values = [state.root.value]
        for step in state.steps:
            arguments = {**step.node.arguments, step.base: Ref(values[-1])}
            old = [self.tape.values[v] for v in step.node.outputs]
            constant = self.tape.values[values[-1]].origin == "constant" and all(
                v.origin == "constant" for v in old
            )
            outputs = []
            for value in old:
                origin = (
                    value
                    if constant
                    else Value(value.shape, "operation", integral=value.integral, mask=value.mask)
                )
                outputs.append(self.tape.new_value(origin))
            self.tape.nodes.append(Node(step.node.op, arguments, outputs, step.node.where))
            values.append(outputs[step.output])
        return values

    def _write(self, state: _State, value: int) -> None:
        """A tensor now has ``value``; pass it back through its views to the memory behind."""
        if state.steps:
            along = self._walk(state)[:-1]
            new = value
            for step, base in zip(reversed(state.steps), reversed(along), strict=True):
                shape = self.tape.values[base].shape
                out = self.tape.new_value(
                    Value(
                        shape,
                        "operation",
                        integral=self.tape.values[base].integral,
                        mask=self.tape.values[base].mask,
                    )
                )
                arguments = {
                    "view": step.node.op,
                    "view_arguments": {
                        k: v for k, v in step.node.arguments.items() if k != step.base
                    },
                    "output": step.output,
                    "base": Ref(base),
                    "piece": Ref(new),
                }
                self.tape.nodes.append(Node("tape.write_back", arguments, [out], step.node.where))
                new = out
            state.root.value = new
        else:
            state.root.value = value
        state.root.version += 1
        state.value, state.version = value, state.root.version


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _constant_value(tensor: Tensor) -> Value:
    """Describe a constant: along which dimensions its values vary, and its numbers if it may index something."""
    integral = not _floating(tensor)
    array = (
        tensor.detach().cpu().numpy().copy()
        if integral and tensor.numel() <= _LARGEST_INDEX
        else None
    )
    varying = []
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            first = tensor.narrow(dim, 0, 1)
            same = (tensor == first) | (tensor.isnan() & first.isnan())
            if not bool(same.all()):
                varying.append(dim)
    return Value(
        tuple(tensor.shape),
        "constant",
        "",
        tuple(varying),
        array,
        integral,
        tensor.dtype == torch.bool,
    )


def _aliased(func: Any, info: Any) -> str:
    """Name of the argument whose memory a result shares."""
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.before_set & info.before_set:
            return str(argument.name)
    return ""
