"""Computing in float64, whatever a model was made for.

Equal functions agree to 1e-12 there, and different ones do not.  Either the weights are in float64 for good or, to
save memory, every submodule finds its own in float64 only while it runs.  Casts to lower precision that a model
hard-codes (normalisation in float32, say) are rewritten as they happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

#: The precision that stands in for each lower one.
WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def widen(tensor: Tensor) -> Tensor:
    """``tensor`` in float64 (or complex128), or itself where it is not floating point."""
    return tensor.to(WIDE.get(tensor.dtype, tensor.dtype))


class ExactMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rewrites every cast to a lower precision, and remembers whether one slipped through.

    Args:
        narrow: Whether weights are kept in their own precision, so that whatever computes with one must widen it first.
    """

    def __init__(self, *, narrow: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounded = False
        self._narrow = narrow

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        cast = func is not torch.ops.aten.view.dtype
        if cast and kwargs.get("dtype") in WIDE:
            kwargs["dtype"] = WIDE[kwargs["dtype"]]
        inputs = [value for value in args if isinstance(value, Tensor)]
        # What is written to must stay the tensor that it is.
        if not func._schema.is_mutable:
            args = self._widened(func, args, inputs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype in WIDE and inputs:
            # a view of a weight in its own precision rounds nothing
            view_of_weight = self._narrow and func.is_view
            if not (view_of_weight and inputs[0].dtype in WIDE):
                self.rounded = True
        return result

    def _widened(self, func: Any, args: Any, inputs: Sequence[Tensor]) -> Any:
        """The arguments in float64 where an operation would compute in less, or would meet two precisions."""
        if self._narrow and not func.is_view:
            return tree_map_only(Tensor, widen, args)
        floats = [value for value in inputs if value.is_floating_point()]
        if len({value.dtype for value in floats}) < 2:
            return args
        return tuple(
            widen(value) if isinstance(value, Tensor) else value
            for value in args
        )


def widen_while_running(module: nn.Module) -> None:
    """Let every submodule find its own parameters in float64 while it runs; buffers, to which it may write, stay so."""
    for buffer in module.buffers():
        buffer.data = widen(buffer.data)
    for part in module.modules():
        own = [
            parameter
            for parameter in part.parameters(recurse=False)
            if parameter.dtype in WIDE
        ]
        if own:
            swap = _Swap(own)
            # first of all, before hooks that compute with the weights (weight norm)
            part.register_forward_pre_hook(swap.enter, prepend=True)
            part.register_forward_hook(swap.leave, always_call=True)


@final
class _Swap:
    """Float64 versions of some parameters between a submodule's first entry and its last exit."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._depth = 0

    def enter(self, *_: object) -> None:
        """Widen."""
        self._depth += 1
        if self._depth == 1:
            self._kept = [
                (tensor, tensor.data)
                for tensor in self._tensors
                if tensor.dtype in WIDE
            ]
            for tensor, narrow in self._kept:
                tensor.data = widen(narrow)

    def leave(self, *_: object) -> None:
        """Put the narrow tensors back."""
        self._depth -= 1
        if self._depth == 0:
            for tensor, narrow in self._kept:
                tensor.data = narrow
            self._kept = []
