"""What a *layer* is when the weights of a network are exchanged layer by layer.

A layer is a submodule that owns tensors itself (not through its children), with all of them: weight, bias and buffers
move together.  Then

- a normalisation layer belongs to the layer registered before it, whose outputs its statistics describe;
- tied tensors belong to the layer that is registered first, and move there only;
- what a parametrization computes from belongs to the layer that is parametrized;
- one fused tensor (query, key and value in one) is in one layer: tensors are never cut.

Layers come in the order in which they are registered, which for most networks is from the input to the output.  Who
wants anything else says which tensors belong together: ``{"stem": ["conv1", "bn1"], "rest": ["blocks"]}``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.weights import first_names, weights_of

#: From the input, from the output, at random, or the names in order.
Order = Literal["forward", "backward", "random"] | Sequence[str]
Layers = dict[str, tuple[str, ...]]
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_PARAMETRIZED = ".parametrizations."


def layers_of(
    module: nn.Module, layers: Mapping[str, Sequence[str]] | None = None
) -> Layers:
    """The layers of a module, by name, with the names of their tensors.

    Args:
        module: Any module.
        layers: Layers by hand: for each the names of tensors, or of submodules, whose tensors then all belong to it.

    Returns:
        Tensors of each layer, in order.

    Raises:
        ConfigurationError: A name by hand fits no tensor, a tensor is in two layers, or there is no layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 1))
        >>> layers_of(net)
        {'0': ('0.weight', '0.bias', '1.weight', '1.bias'), '3': ('3.weight', '3.bias')}
        >>> layers_of(net, {"all": ["0", "1", "3.weight", "3.bias"]})["all"][-1]
        '3.bias'
    """
    names = list(weights_of(module))
    first = first_names(module)
    found = _owners(module, names, first)
    if layers is not None:
        found = _by_hand(names, first, layers)
    if not found:
        raise ConfigurationError(
            f"{type(module).__name__} has no layers: it owns no tensors"
        )
    return {layer: tuple(own) for layer, own in found.items()}


def ordered(layers: Layers, order: Order, seed: int = 0) -> Layers:
    """The layers in another order.

    Args:
        layers: In the order of the module.
        order: ``"forward"``, ``"backward"``, ``"random"``, or names of layers; those that are left out do not move.
        seed: Seeds ``"random"``.

    Raises:
        ConfigurationError: The order is unknown, or names a layer that does not exist, or one twice.
    """
    names = list(layers)
    if order == "backward":
        names.reverse()
    elif order == "random":
        random.Random(seed).shuffle(names)  # an order, not a secret
    elif isinstance(order, str) and order != "forward":
        raise ConfigurationError(
            f"order={order!r} is unknown; choose 'forward', 'backward', 'random' or a list of layers"
        )
    elif not isinstance(order, str):
        names = list(order)
    unknown = [name for name in names if name not in layers]
    if unknown or len(set(names)) != len(names) or not names:
        raise ConfigurationError(
            f"order: every layer once at most; {unknown or names} does not fit the layers {', '.join(layers)}"
        )
    return {name: layers[name] for name in names}


def _owners(
    module: nn.Module, names: Sequence[str], first: Mapping[str, str]
) -> dict[str, list[str]]:
    """Tensors by the submodule that owns them, norms joined to the layer before."""
    # Not remove_duplicate: the checkpoint has every name of a shared module.
    children = dict(module.named_modules(remove_duplicate=False))
    norms = set()
    for name, child in children.items():
        if isinstance(child, _NORMS):
            norms.add(f"{name}.".replace("_orig_mod.", "")[:-1])
    found: dict[str, list[str]] = {}
    joined: dict[str, str] = {}
    for name in names:
        owner = _owner(first[name])
        if owner not in joined:
            before = next(reversed(found), None)
            joins = owner in norms and before is not None
            joined[owner] = before if joins and before else owner
        found.setdefault(joined[owner], []).append(name)
    return found


def _owner(name: str) -> str:
    """The submodule that a tensor belongs to."""
    if _PARAMETRIZED in name:
        return name.split(_PARAMETRIZED, maxsplit=1)[0]
    return name.rpartition(".")[0]


def _by_hand(
    names: Sequence[str],
    first: Mapping[str, str],
    layers: Mapping[str, Sequence[str]],
) -> dict[str, list[str]]:
    """The layers that somebody lists, by tensors or by submodules."""
    home: dict[str, str] = {}
    for layer, prefixes in layers.items():
        for prefix in prefixes:
            own = [
                n for n in names if n == prefix or n.startswith(f"{prefix}.")
            ]
            if not own:
                raise ConfigurationError(
                    f"layers: {prefix!r} of layer {layer!r} fits no tensor of the module"
                )
            for name in own:
                if home.setdefault(first[name], layer) != layer:
                    raise ConfigurationError(
                        f"layers: {name!r} is in {home[first[name]]!r} and in {layer!r}"
                    )
    found: dict[str, list[str]] = {layer: [] for layer in layers}
    for name in names:
        if first[name] in home:
            found[home[first[name]]].append(name)
    return {layer: own for layer, own in found.items() if own}
