"""Moving an optimizer's state along with the units it belongs to.

Adam's moments and SGD's momentum have the shape of their parameter, so a permutation of the weights acts on them in the
same way; if they move together, training of the permuted network goes on exactly as it would have.

A saved optimizer knows its parameters only by number.  Which number is which parameter is found, in this order, from
names that the optimizer kept, from the module's ``configure_optimizers``, or from the usual order (that of the state
dict); every state's shape is checked against its parameter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import CheckpointError
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def permute_optimizer_states(
    states: Sequence[Mapping[str, Any]],
    permutation: Permutation,
    module: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Permute the state dicts of the optimizers of one network.

    Args:
        states: ``checkpoint["optimizer_states"]``: the result of ``optimizer.state_dict()`` for each optimizer.
        permutation: What is applied to the weights.
        module: The LightningModule, which knows its optimizers; without it the usual order of parameters is assumed.

    Returns:
        New state dicts; everything that has no parameter's shape (step counts) is kept as it is.

    Raises:
        CheckpointError: A state does not have the shape of the parameter it should belong to.
    """
    from_module = _names_from_module(module)
    result = []
    for number, state in enumerate(states):
        known = (
            from_module[number]
            if from_module is not None and len(from_module) == len(states)
            else None
        )
        names = _names_of(state, permutation.spec, known)
        moved = {
            index: {
                key: _moved(value, names.get(index), key, permutation)
                for key, value in slots.items()
            }
            for index, slots in state["state"].items()
        }
        result.append({**state, "state": moved})
    return result


def _moved(
    value: Any, name: str | None, key: str, permutation: Permutation
) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0:
        return value.clone()
    spec = permutation.spec
    if name is None or tuple(value.shape) != spec.tensors[name].shape:
        belongs = (
            "an unknown parameter"
            if name is None
            else f"{name!r} of shape {spec.tensors[name].shape}"
        )
        raise CheckpointError(
            f"the optimizer's {key!r} of shape {tuple(value.shape)} does not fit {belongs}: give the module "
            "(--module), or leave the optimizer out"
        )
    axis_map = spec.maps.get(spec.aliases.get(name, name))
    return (
        value.clone()
        if axis_map is None
        else permutation.apply_map(value, axis_map)
    )


def _names_of(
    state: Mapping[str, Any],
    spec: PermutationSpec,
    known: Mapping[int, str] | None,
) -> dict[int, str]:
    """Parameter name by the optimizer's number."""
    groups = state["param_groups"]
    if all("param_names" in group for group in groups):
        known = {}
        for group in groups:
            pairs = zip(group["params"], group["param_names"], strict=True)
            known.update(pairs)
    if known is not None:
        named = known.items()
        return {index: name for index, name in named if name in spec.tensors}
    if len(groups) > 1:
        raise CheckpointError(
            f"the optimizer has {len(groups)} groups of parameters, whose order the file does not tell: give the "
            "module (--module)"
        )
    names = []
    for name, info in spec.tensors.items():
        if info.kind == "parameter" and name not in spec.aliases:
            names.append(name)
    if len(groups[0]["params"]) != len(names):
        raise CheckpointError(
            f"the optimizer has {len(groups[0]['params'])} parameters, the network {len(names)}: give the module "
            "(--module)"
        )
    return dict(zip(groups[0]["params"], names, strict=True))


def _names_from_module(
    module: nn.Module | None,
) -> list[dict[int, str]] | None:
    """Names by number for every optimizer that ``configure_optimizers`` makes, if it runs outside of training."""
    configure = getattr(module, "configure_optimizers", None)
    if module is None or configure is None:
        return None
    try:
        found = _optimizers(configure())
    except Exception:  # noqa: BLE001  the user's own code, which may want a trainer; the usual order is tried instead
        return None
    names = {
        id(parameter): name for name, parameter in module.named_parameters()
    }
    return [
        {
            i: names[id(p)]
            for i, p in enumerate(
                p for g in o.param_groups for p in g["params"]
            )
            if id(p) in names
        }
        for o in found
    ]


def _optimizers(value: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in any of the forms that ``configure_optimizers`` may return, in Lightning's order."""
    if isinstance(value, torch.optim.Optimizer):
        return [value]
    if isinstance(value, Mapping):
        return _optimizers(value.get("optimizer"))
    if isinstance(value, list | tuple):
        return [optimizer for item in value for optimizer in _optimizers(item)]
    return []
