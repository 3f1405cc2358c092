"""Beginnings of passes that need not be computed again.

Each layer is fitted to what the merged network gives it, which takes a pass up to that layer; with everything computed
anew a network of ``L`` layers would run ``L²/2`` of them.  But nothing in front of a layer that was fitted changes any
more.  So the values that are still alive when a layer is about to run are kept for each batch, and the next pass goes
through the same operations without computing them: a value that was kept is handed out, and any other one, which
nobody can ask for any more, is a blank of the same shape.

What is alive is read off weak references, and the program of the network runs as it always does.  An operation behind
the kept part that is given a blank after all, or one in front that is another than before, ends the pass, and the batch
is computed in full from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import TensorWeakRef

#: Marks a tensor whose numbers mean nothing.
_BLANK = "_rebasin_blank"


class StaleError(BaseException):
    """A kept beginning does not fit this pass; no ``Exception``, so that no handler of the network catches it."""


@dataclass(frozen=True, eq=False)
class _Shape:
    """A value that nobody needs."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def blank(self) -> Tensor:
        """Memory of that form; it is not written to, so that it costs next to nothing."""
        found = torch.empty_strided(
            self.size, self.stride, dtype=self.dtype, device=self.device
        )
        setattr(found, _BLANK, True)
        return found


#: An operation and its result, with tensors kept, or replaced by their shapes.
_Step = tuple[Any, Any]


@final
class Beginning:
    """What is kept of the passes of one batch.

    Args:
        limit: How many bytes may be kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: The operations of the kept part.
        self.steps: list[_Step] = []
        #: Whether the network writes into tensors: then copies are handed out.
        self.writes = False

    def keep(self, steps: list[_Step]) -> None:
        """Keep more of the pass, unless it is too much."""
        if _bytes(step[1] for step in steps) <= self._limit:
            self.steps = steps

    def forget(self) -> None:
        """Keep nothing from now on."""
        self.steps = []
        self._limit = -1


def _bytes(results: Iterator[Any]) -> int:
    """Bytes that the kept tensors hold together, memory that several share counted once."""
    sizes = {}
    for leaf in tree_leaves(list(results)):
        if isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


@final
class Pass:
    """One pass that begins with what was kept.

    Args:
        beginning: What was kept, and where more is kept.
    """

    def __init__(self, beginning: Beginning) -> None:
        self._beginning = beginning
        self._known = len(beginning.steps)
        #: Operations so far; of their results only weak references.
        self._seen: list[_Step] = []
        #: Copies that were handed out for kept tensors.
        self._handed: dict[int, Tensor] = {}

    def run(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The result of the next operation, computed only if it has to be."""
        number = len(self._seen)
        if number < self._known:
            before, result = self._beginning.steps[number]
            if func is not before:
                raise StaleError
            result = tree_map(self._hand_out, result)
        else:
            self._check(func, args, kwargs)
            result = func(*args, **kwargs)
        self._seen.append((func, tree_map(_weak, result)))
        return result

    def keep(self) -> None:
        """All operations so far are final: keep what is alive of their results."""
        steps = [(func, tree_map(_alive, weak)) for func, weak in self._seen]
        self._beginning.keep(steps)

    def _check(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        for leaf in tree_leaves((list(args), dict(kwargs))):
            if isinstance(leaf, Tensor) and hasattr(leaf, _BLANK):
                self._beginning.forget()
                raise StaleError
        if func._schema.is_mutable and not self._beginning.writes:
            self._beginning.writes = True
            # What is kept may be about to be overwritten: once more, with copies.
            if self._known:
                raise StaleError

    def _hand_out(self, kept: Any) -> Any:
        if isinstance(kept, _Shape):
            return kept.blank()
        if not isinstance(kept, Tensor):
            return kept
        # The same tensor for the same tensor, and never the kept one itself: its own references tell whether it lives.
        if id(kept) not in self._handed:
            copies = self._beginning.writes
            self._handed[id(kept)] = kept.clone() if copies else kept.detach()
        return self._handed[id(kept)]


@dataclass(frozen=True, eq=False)
class _Weak:
    """A result that may be gone by now."""

    tensor: TensorWeakRef
    shape: _Shape


def _weak(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    # Numbers to count or choose with may be read without an operation: they are kept in any case.
    if not leaf.is_floating_point() and not hasattr(leaf, _BLANK):
        return leaf
    size, stride = tuple(leaf.shape), tuple(leaf.stride())
    shape = _Shape(size, stride, leaf.dtype, leaf.device)
    return _Weak(TensorWeakRef(leaf), shape)


def _alive(leaf: Any) -> Any:
    if not isinstance(leaf, _Weak):
        return leaf
    tensor = leaf.tensor()
    if tensor is None or hasattr(tensor, _BLANK):
        return leaf.shape
    return tensor
