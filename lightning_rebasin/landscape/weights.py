"""The weights of a module, by the names that checkpoints use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_rebasin.merging.interpolate import check_alike

_COMPILED = "_orig_mod."


class Moves(Protocol):
    """Anything that brings one network near another: a permutation, a transform."""

    def apply(self, state: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
        """The same network with its units in another order."""
        ...


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module by the names that checkpoints use; the tensors share the module's storage.

    Compiled submodules add ``_orig_mod.`` to their names, which is taken out.  Persistent states of metrics are not
    weights and are left out.
    """
    metrics = []
    for name, child in module.named_modules():
        if isinstance(child, (Metric, MetricCollection)):
            metrics.append(f"{name}.")
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and not name.startswith(tuple(metrics)):
            found[name.replace(_COMPILED, "")] = tensor.detach()
    return found


def parameter_names(module: nn.Module) -> list[str]:
    """Names of the parameters in the order of the module, each tied one once, under its first name."""
    names = [name for name, _ in module.named_parameters()]
    return [name.replace(_COMPILED, "") for name in names]


def trainable_names(module: nn.Module) -> list[str]:
    """:func:`parameter_names` without the frozen ones."""
    found = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found.append(name.replace(_COMPILED, ""))
    return found


def first_names(module: nn.Module) -> dict[str, str]:
    """For every weight the first name under which the same tensor is known; different from its own if it is tied."""
    first: dict[int, str] = {}
    found = {}
    # With keep_vars tied names give one tensor object.
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            key = name.replace(_COMPILED, "")
            found[key] = first.setdefault(id(tensor), key)
    return found


def check_ends(
    module: nn.Module, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> None:
    """Raise :class:`~lightning_rebasin.StateDictError` unless both states fit the module."""
    check_alike(
        (weights_of(module), a, b), ("the module", "a (λ = 0)", "b (λ = 1)")
    )


def check_states(
    module: nn.Module, states: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """The states with the names of the uncompiled module.

    Raises:
        StateDictError: One of them does not fit the module.
    """
    found = [without_compilation_prefix(state) for state in states]
    labels = [f"set of weights {k + 1}" for k in range(len(found))]
    check_alike((weights_of(module), *found), ("the module", *labels))
    return found


def without_compilation_prefix(
    state: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Names as the uncompiled module has them."""
    return {
        name.replace(_COMPILED, ""): tensor for name, tensor in state.items()
    }
