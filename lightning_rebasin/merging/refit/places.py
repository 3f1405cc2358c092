"""Places of a forward pass, and a forward pass that stops to look at them.

A :class:`Place` names one operation of a forward pass by what it is and by how many of its kind ran before it: the
third ``aten.addmm``.  The numbers come from a tape, and hold for every input that takes the same path through the
network.  :func:`watch` runs a network on a batch, shows the operations at the wanted places while they happen, and ends
the pass early once everything was seen.

Between a layer and the place where its output is wanted, values may be moved about (``view``, ``transpose``, …).  A
:class:`Trail` goes along: for each element it knows where the layer had put it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_rebasin.merging.refit.beginnings import Beginning, Pass
from lightning_rebasin.merging.statistics import outputs
from lightning_rebasin.symmetry.trace.record import plain_kernels
from lightning_rebasin.symmetry.trace.tape import Node, Tape

#: Operations that only move elements: each element of the result is one of the first argument.
MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "alias",
        "clone",
        "contiguous",
        "detach",
        "expand",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unsqueeze",
        "view",
        "_reshape_alias",
        "_unsafe_view",
    )
)

#: Moves that want the strides of the very tensor they were made for.  The numbers that go along have other strides.
_VIEWS = frozenset(("aten.view", "aten._unsafe_view", "aten._reshape_alias"))


@dataclass(frozen=True)
class Place:
    """One operation of a forward pass.

    Args:
        op: Its name, without overload and without the underscore of in-place variants.
        run: How many operations of this name ran before it.
    """

    op: str
    run: int


def number(tape: Tape) -> dict[int, Place]:
    """The place of every operation of a tape, by the position of its node.

    Moves have no place: the tape repeats them after writes into views, so that their numbers mean nothing.
    """
    counts: Counter[str] = Counter()
    places = {}
    for position, node in enumerate(tape.nodes):
        if node.op in MOVES or node.op.startswith("tape."):
            continue
        places[position] = Place(node.op, counts[node.op])
        counts[node.op] += 1
    return places


def replay_move(node: Node, moved: Tensor, output: int = 0) -> Tensor:
    """Do to ``moved`` what a recorded move did to its first argument."""
    rest = {k: v for k, v in node.arguments.items() if k != "self"}
    if node.op in _VIEWS:
        return moved.reshape(rest["size"])
    packet = getattr(torch.ops.aten, node.op.removeprefix("aten."))
    result = packet(moved, **rest)
    several = isinstance(result, list | tuple)
    piece: Tensor = result[output] if several else result
    return piece


class Watcher(Protocol):
    """Wants to see one operation."""

    def __call__(self, given: Mapping[str, Any], result: Tensor) -> None:
        """Look at the operation's arguments by name and at its (first) result.

        In-place operations have overwritten their argument already.
        """


class Trail:
    """Where each element of a value stood in the output of a layer.

    Args:
        start: The layer's output.

    Example:
        >>> y = torch.zeros(2, 3)
        >>> trail = Trail(y)
        >>> trail.move(torch.ops.aten.t.default, (y,), {}, y.t())
        >>> values = torch.tensor([[0, 3], [1, 4], [2, 5]])
        >>> trail.back(values).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """

    def __init__(self, start: Tensor) -> None:
        self._shape = start.shape
        self._now: Tensor = start
        #: None: nothing was moved yet.
        self._index: Tensor | None = None

    def move(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Follow a move of the present value; other moves are none of our business."""
        if (
            not args
            or args[0] is not self._now
            or not isinstance(result, Tensor)
        ):
            return
        index = self._index
        if index is None:
            index = torch.arange(self._now.numel(), device=self._now.device)
            index = index.reshape(self._shape)
        if result.numel() != self._now.numel():
            return
        if operation_name(func) in _VIEWS:
            self._index = index.reshape(result.shape)
        else:
            self._index = func(index, *args[1:], **kwargs)
        self._now = result

    def go_on(self, result: Tensor) -> None:
        """An elementwise operation has made a new value of the present one."""
        self._now = result

    def back(self, values: Tensor) -> Tensor:
        """Values in the layout of the present value, put where the layer had them."""
        if self._index is None:
            return values
        flat = torch.empty_like(values).reshape(-1)
        flat[self._index.reshape(-1)] = values.reshape(-1)
        return flat.reshape(self._shape)


class _Seen(BaseException):
    """Ends a forward pass; not an ``Exception``, so that no handler of the network's own code catches it."""


# PyTorch leaves the methods of TorchDispatchMode without annotations; so below.
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(
        self,
        watchers: Mapping[Place, list[Watcher]],
        trails: set[Trail],
        beginning: Beginning | None,
        until: Place | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pass = None if beginning is None else Pass(beginning)
        self._until = until
        self._watchers = watchers
        self._trails = trails
        self._missing = sum(len(found) for found in watchers.values())
        self._runs: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        name = operation_name(func)
        if name in MOVES:
            result = self._result(func, args, kwargs)
            for trail in self._trails:
                trail.move(func, args, kwargs, result)
            return result
        place = Place(name, self._runs[name])
        self._runs[name] += 1
        if self._pass is not None and place == self._until:
            self._pass.keep()
        result = self._result(func, args, kwargs)
        for watcher in self._watchers.get(place, ()):
            self._missing -= 1
            first = result[0] if isinstance(result, list | tuple) else result
            watcher(bound(func, args, kwargs), first)
        if not self._missing:
            raise _Seen
        return result

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._pass is None:
            return func(*args, **kwargs)
        return self._pass.run(func, args, kwargs)


def operation_name(func: Any) -> str:
    """The name that a tape gives to an operation."""
    name = f"{func.namespace}.{func._schema.name.split('::')[1]}"
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name


def bound(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    given = {}
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in kwargs:
            given[argument.name] = kwargs[argument.name]
        elif i < len(args) and not argument.kwarg_only:
            given[argument.name] = args[i]
        elif argument.has_default_value():
            given[argument.name] = argument.default_value
    return given


def watch(
    module: nn.Module,
    batch: Any,
    watchers: Mapping[Place, list[Watcher]],
    trails: set[Trail],
    *,
    plain: bool,
    beginning: Beginning | None = None,
    until: Place | None = None,
) -> bool:
    """Run a network on one batch until every watcher has seen its operation.

    Args:
        module: The network, in eval mode.
        batch: A batch, as for :func:`~lightning_rebasin.merging.repair`.
        watchers: Who wants to see what.
        trails: Filled by the watchers; every move is shown to them.
        plain: Switch fused kernels off, as on the tape.
        beginning: What was kept of an earlier pass on the batch.
        until: Operation in front of which everything is final, and is kept.

    Returns:
        Whether everything was seen.

    Raises:
        StaleError: What was kept does not fit the pass.
    """
    kernels = plain_kernels() if plain else _as_they_are()
    try:
        mode = _Watch(watchers, trails, beginning, until)
        with torch.no_grad(), kernels, mode:
            for _ in outputs(module, [batch]):
                pass
    except _Seen:
        return True
    return False


@contextmanager
def _as_they_are() -> Iterator[None]:
    yield


def operation_names(
    module: nn.Module, batch: Any, *, plain: bool
) -> list[str]:
    """Names of all operations of a forward pass but moves, in order."""
    names: list[str] = []

    class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func._can_decompose():
                with self:
                    return func.decompose(*args, **(kwargs or {}))
            name = operation_name(func)
            if name not in MOVES:
                names.append(name)
            return func(*args, **(kwargs or {}))

    kernels = plain_kernels() if plain else _as_they_are()
    with torch.no_grad(), kernels, Names():  # type: ignore[no-untyped-call]
        for _ in outputs(module, [batch]):
            pass
    return names
