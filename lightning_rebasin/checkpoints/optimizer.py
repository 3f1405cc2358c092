"""Moving an optimizer's state along with the weights it belongs to.

A symmetry acts on each weight by some linear map T, ``θ' = T θ``, and the gradient of the new network at θ' is then
``T⁻ᵀ`` times that of the old one.  What an optimizer keeps are sums of gradients, or of their squares:

- permutations: everything moves as the weights do;
- signs: so do sums of gradients; sums of squares change place only;
- scales c: sums of gradients are divided by c, sums of squares by c²;
- rotations and other maps that mix units: sums of gradients become ``T⁻ᵀ m``.  Sums of squares say nothing of the
  products between units, so there is no rule, and training has to collect them anew.

This is the state that the same gradients would have left behind in the moved network.  Three things stand in the way:
a gain that was folded into its readers changes the map from step to step; weight decay that is part of the gradient
(SGD, Adam; not AdamW) adds weights to gradients, which scales and maps move differently; and nobody knows what a
foreign optimizer keeps.  Where there is no exact rule, the parameter's whole state is left out and a warning says why:
the optimizer starts afresh for that parameter.

A saved optimizer knows its parameters only by number: see :mod:`lightning_rebasin.checkpoints.optimizer_names`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.checkpoints.optimizer_names import (
    names_from_module,
    names_of,
)
from lightning_rebasin.errors import CheckpointError, OptimizerStateWarning
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.gauge import fold
from lightning_rebasin.symmetry.spec.values import AxisMap

#: Sums of gradients, by the names that PyTorch's optimizers give them.
_GRADIENTS = frozenset({"momentum_buffer", "exp_avg", "grad_avg"})
#: Sums of squares of gradients, or the largest of them.
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg"})
#: Kinds whose maps have one entry ±1 in each row, and so are orthogonal and keep squares apart.
_SIGNED = frozenset({"permutation", "sign", "flips", "splits"})
#: Kinds whose maps are orthogonal.
_ORTHOGONAL = _SIGNED | {"orthogonal", "orthogonal_mean"}
#: Kinds whose maps do not mix units.
_APART = _SIGNED | {"scale"}


class _NoRuleError(Exception):
    """There is no exact rule; the message says why."""


def move_optimizer_states(
    states: Sequence[Mapping[str, Any]],
    transform: Transform,
    module: nn.Module | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """The state dicts of the optimizers of one network, after a symmetry was applied to its weights.

    Args:
        states: ``checkpoint["optimizer_states"]``: the result of ``optimizer.state_dict()`` for each optimizer.
        transform: What is applied to the weights.
        module: The LightningModule, which knows its optimizers; without it the usual order of parameters is assumed.
        weights: The weights before; without them every gain counts as folded.

    Returns:
        New state dicts; everything that has no parameter's shape (step counts) is kept as it is.

    Raises:
        CheckpointError: A state does not have the shape of the parameter it should belong to.
    """
    from_module = names_from_module(module) or []
    known: list[dict[int, str] | None] = [None] * len(states)
    if len(from_module) == len(states):
        known = list(from_module)
    mover = _Mover(transform, weights)
    result = []
    for state, own in zip(states, known, strict=True):
        names = names_of(state, transform.spec, own)
        decays = _decays(state)
        moved = {}
        for index, slots in state["state"].items():
            name = names.get(index)
            try:
                moved[index] = mover.moved(
                    name, slots, decays.get(index, False)
                )
            except _NoRuleError as reason:
                mover.dropped.setdefault(str(reason), []).append(str(name))
        result.append({**state, "state": moved})
    for why, dropped in mover.dropped.items():
        shown = ", ".join(dropped[:3]) + (", …" if len(dropped) > 3 else "")
        warnings.warn(
            f"the optimizer's state of {len(dropped)} parameters ({shown}) is left out, so it starts afresh for them: "
            f"{why}",
            OptimizerStateWarning,
            stacklevel=2,
        )
    return result


@final
class _Mover:
    """Moves the state of one parameter after another.

    Args:
        transform: What is applied to the weights.
        weights: The weights before, if they are known.
    """

    def __init__(
        self, transform: Transform, weights: Mapping[str, Tensor] | None
    ) -> None:
        self._spec = transform.spec
        self._transform = transform
        self._squared = _squared(transform)
        self._folded = _folded(transform, weights)
        self._centred = {
            name for one in self._spec.centres for name, _ in one.tensors
        }
        #: Parameters whose state was left out, by the reason.
        self.dropped: dict[str, list[str]] = {}

    def moved(
        self, name: str | None, slots: Mapping[str, Any], decays: bool
    ) -> dict[str, Any]:
        """The state of one parameter.

        Args:
            name: Its name, if it is known.
            slots: What the optimizer keeps.
            decays: Whether weight decay is part of the gradient.

        Raises:
            _NoRuleError: There is no exact rule.
            CheckpointError: A tensor does not have the parameter's shape.
        """
        return {
            key: self._moved(name, key, value, decays)
            for key, value in slots.items()
        }

    def _moved(
        self, name: str | None, key: str, value: Any, decays: bool
    ) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 0:
            return value.clone()
        name = _fitting(self._spec.tensors, name, key, value)
        if name in self._folded:
            raise _NoRuleError(self._folded[name])
        axis_map = self._spec.maps.get(self._spec.aliases.get(name, name))
        if axis_map is None:
            return value.clone()
        groups = [self._spec.groups[group] for group in axis_map.groups]
        kinds = {group.kind for group in groups}
        if kinds == {"permutation"}:
            return self._transform.apply_map(value, axis_map)
        if decays and (name in self._centred or not kinds <= _ORTHOGONAL):
            raise _NoRuleError(
                "its gradients hold a weight decay, which does not move as they do"
            )
        if key in _GRADIENTS:
            return self._transform.apply_map(value, _contragredient(axis_map))
        if key in _SQUARES and kinds <= _APART:
            # What has one entry in each row squares entry by entry.
            squared = self._squared.apply_map(value, _contragredient(axis_map))
            return squared.abs()
        mixing = ", ".join(sorted(kinds - _APART)) or "sign or scale"
        raise _NoRuleError(
            f"there is no exact rule for {key!r} under the kind {mixing}"
        )


def _fitting(
    tensors: Mapping[str, Any], name: str | None, key: str, value: Tensor
) -> str:
    """The name, if the value has its parameter's shape.

    Raises:
        CheckpointError: It has not, or nobody knows the name.
    """
    if name is not None and tuple(value.shape) == tensors[name].shape:
        return name
    belongs = (
        "an unknown parameter"
        if name is None
        else f"{name!r} of shape {tensors[name].shape}"
    )
    raise CheckpointError(
        f"the optimizer's {key!r} of shape {tuple(value.shape)} does not fit {belongs}: give the module "
        "(--module), or leave the optimizer out"
    )


def _contragredient(axis_map: AxisMap) -> AxisMap:
    """The map under which a transform T acts as ``T⁻ᵀ``: what is written counts as read, and the other way round."""
    flipped = [
        replace(component, power=-component.power)
        for component in axis_map.components
    ]
    return replace(axis_map, components=tuple(flipped))


def _squared(transform: Transform) -> Transform:
    """The transform whose scales are squared: what acts on squares where units are not mixed."""
    elements = dict(transform.elements)
    for group in transform.spec.groups.values():
        if group.kind == "scale":
            elements[group.id] = elements[group.id].square()
        elif group.kind not in _SIGNED:
            elements[group.id] = action_of(group).identity(group)
    return Transform.of(transform.spec, elements)


def _folded(
    transform: Transform, weights: Mapping[str, Tensor] | None
) -> dict[str, str]:
    """Parameters whose gradients are others once the weights are in canonical gauge, with the reason.

    In ``W(γ∘n + β) + b`` the gradient of W is an outer product with ``γ∘n + β``; after folding it is one with n.
    """
    spec = transform.spec
    found = {}
    for one in spec.folds:
        found[one.gain] = (
            "a gain acts on units one by one, so after a rotation its gradients are others"
        )
        shift = one.shift if one.absorbs_shift else None
        if _is(weights, one.gain, one.neutral) and _is(weights, shift, 0):
            continue
        folded = [reader.weight for reader in one.readers]
        folded += [one.shift] if one.shift is not None else []
        for name in folded:
            found[name] = (
                "a gain or shift that changed during training is folded into its readers"
            )
    if weights is not None:
        # Shifts of norms go into the biases that are passed on.
        weights = fold(replace(spec, biases=(), centres=()), weights)
    for bias in spec.biases:
        if bias.weight and not _is(weights, bias.bias, 0, bias.entries):
            found[bias.weight] = (
                "a bias of values that changed during training is passed on"
            )
    return found


def _is(
    weights: Mapping[str, Tensor] | None,
    name: str | None,
    value: float,
    entries: Sequence[int] | None = None,
) -> bool:
    """Whether a tensor is constant, or some of its entries are; one that does not exist is, unknown weights are not."""
    if name is None:
        return True
    if weights is None:
        return False
    tensor = weights[name]
    if entries is not None:
        tensor = tensor[torch.tensor(entries)]
    return bool((tensor == value).all())


def _decays(state: Mapping[str, Any]) -> dict[int, bool]:
    """For every parameter's number whether weight decay is part of the gradient."""
    found = {}
    for group in state["param_groups"]:
        apart = group.get("decoupled_weight_decay", False)
        decays = bool(group.get("weight_decay", 0)) and not apart
        found.update(dict.fromkeys(group["params"], decays))
    return found
