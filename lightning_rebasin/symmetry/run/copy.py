"""A private copy of a model: what is done to it leaves the caller's model alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.run.hollow import hollow_twins
from lightning_rebasin.symmetry.run.lightning import is_lightning

#: What ``torch.compile`` of a whole LightningModule binds to the instance.
_COMPILED_STEPS = (
    "forward",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
)


def uncompiled(module: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``; torch's own class is not imported, since that loads the compiler."""
    while True:
        inner = vars(module).get("_modules", {}).get("_orig_mod")
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside ``torch.compile`` and (distributed) data-parallel wrappers, in any order."""
    module = uncompiled(module)
    while isinstance(
        module, nn.DataParallel | nn.parallel.DistributedDataParallel
    ):
        module = uncompiled(module.module)
    return module


def private_copy(module: nn.Module, *, share: bool = False) -> nn.Module:
    """A deep copy, unwrapped and uncompiled, in eval mode; the dtype stays.

    Args:
        module: What to copy.
        share: Let the parameters of the copy use the memory of the original's.
    """
    module = unwrap(module)
    memo: dict[int, Any] = {**hollow_twins(module)}
    if share:
        for parameter in module.parameters():
            twin = nn.Parameter(parameter.detach(), parameter.requires_grad)
            memo[id(parameter)] = twin
    for part in module.modules():
        memo.update(_copied_by_hand(part))
    try:
        duplicate = copy.deepcopy(module, memo)
    except Exception as error:  # user modules may hold anything: locks, generators, open files
        raise TraceError(
            f"cannot copy {type(module).__name__}: {type(error).__name__}: {error}"
        ) from error
    run_own_code(duplicate, unwrap)
    return duplicate.eval()


def run_own_code(
    module: nn.Module, inner: Callable[[nn.Module], nn.Module]
) -> None:
    """Make a copy run its own code: whatever is compiled still refers to the original's weights.

    Args:
        module: A copy; changed in place.
        inner: Gives the network inside a wrapper: :func:`uncompiled` or :func:`unwrap`.
    """
    for part in module.modules():
        for name, child in part._modules.items():
            if child is not None:
                part._modules[name] = inner(child)
        # torch.compile of a whole LightningModule binds compiled methods of the *original* to the instance.
        if vars(part).get("_compiler_ctx") is not None:
            for name in _COMPILED_STEPS:
                vars(part).pop(name, None)
            vars(part)["_compiler_ctx"] = None


def _copied_by_hand(part: nn.Module) -> dict[int, Any]:
    """What ``deepcopy`` must not copy by itself, by the id of the original."""
    memo: dict[int, Any] = {}
    for name, value in vars(part).items():
        # Hook-style weight norm leaves a computed, non-leaf weight on the module, which deepcopy refuses.
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach().clone()
        # Where logging was redirected before, a bound method would drag its owner along.
        elif name in ("log", "log_dict") and is_lightning(part):
            memo[id(value)] = None
    return memo


def tensor_state(
    module: nn.Module, *, keep_vars: bool = False
) -> dict[str, Tensor]:
    """The tensors of a module's state dict (extra state of other types left out)."""
    state = module.state_dict(keep_vars=keep_vars)
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
