"""Which parameter is which in a saved optimizer, which knows them only by number.

Found, in this order, from names that the optimizer kept, from the module's ``configure_optimizers``, or from the usual
order (that of the state dict).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_rebasin.errors import CheckpointError
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def names_of(
    state: Mapping[str, Any],
    spec: PermutationSpec,
    known: Mapping[int, str] | None,
) -> dict[int, str]:
    """Parameter name by the optimizer's number.

    Args:
        state: The optimizer's state dict.
        spec: The tensors of the network, in its order.
        known: Names that the module's own optimizer has, if there is one.

    Raises:
        CheckpointError: Nothing tells which parameter is which.
    """
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


def names_from_module(
    module: nn.Module | None,
) -> list[dict[int, str]] | None:
    """Names by number for every optimizer that ``configure_optimizers`` makes, if it runs outside of training.

    Args:
        module: The LightningModule, if there is one.
    """
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
