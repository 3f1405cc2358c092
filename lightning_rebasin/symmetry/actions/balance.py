"""Equal lengths of what writes and what reads: the part of the canonical gauge that the kinds know.

Between two maps P (writers, rows are units) and N (readers) any invertible A may stand, ``P → A P``, ``N → A⁻ᵀ N``.
One of them makes both sides alike: with the Gram matrices ``G = P Pᵀ`` and ``H = N Nᵀ`` the symmetric positive A with

    ``A G A = A⁻¹ H A⁻¹``,    that is    ``A² = G^(−½) (G^½ H G^½)^½ G^(−½)``,

the geometric mean of ``G⁻¹`` and H.  It is the identity exactly where G = H, so balanced weights stay as they are.  A
scale (one number for each unit) balances the diagonals, ``c⁴ = H_ii / G_ii``; a pair of rotary units has one number for
both.  After balancing, two pairs that compute the same function differ by a rotation only: Procrustes finds it.

Canonical gauge evens out all lengths but the positive scales of single units (:attr:`Action.keeps_lengths`).  To find
a scaled copy they have to be evened out as well, so a matching balances both networks altogether and then goes back
to the lengths of the reference (:func:`back_from_balance`): those are what training has made of each layer's share,
and what is merged should keep them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform, act
from lightning_rebasin.symmetry.spec.gauge import register_gauge
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import Group, rows_of_units

#: Sweeps over all groups: groups that share a tensor wait for each other.
_MOST_SWEEPS = 50
_CLOSE = 1e-10


def balancing(spec: PermutationSpec, state: Mapping[str, Tensor]) -> Transform:
    """The element of every group that balances some weights, single units included.

    Args:
        spec: The spec.
        state: Folded weights.

    Returns:
        A transform; the identity for permutations, signs and rotations.
    """
    return _balancing(spec, state, _stretching(spec))


def back_from_balance(
    spec: PermutationSpec, state: Mapping[str, Tensor]
) -> Transform:
    """What leads from balanced weights back to canonical gauge, where single units keep their lengths.

    Args:
        spec: The spec.
        state: Folded weights.

    Returns:
        ``C ∘ B⁻¹`` with the element C of canonical gauge and that of :func:`balancing`, B.
    """
    if len(_in_gauge(spec)) == len(_stretching(spec)):
        return Transform.identity(spec)
    canonical = _balancing(spec, state, _in_gauge(spec))
    return canonical.compose(balancing(spec, state).inverse())


def _balancing(
    spec: PermutationSpec,
    state: Mapping[str, Tensor],
    open_groups: list[Group],
) -> Transform:
    """The elements of some groups that balance some weights."""
    elements: dict[str, Tensor] = {}
    # Only these are needed: a second copy of a large network in float64 would be most of what matching takes.
    touched = {n for group in open_groups for n in spec.tensors_of(group.id)}
    state = {name: state[name].double() for name in touched}
    for _ in range(_MOST_SWEEPS if open_groups else 0):
        furthest = 0.0
        for group in open_groups:
            element = _balance_of(spec, group, state)
            if element is None:
                continue
            action = action_of(group)
            furthest = max(furthest, action.distance(group, element))
            for name in spec.tensors_of(group.id):
                state[name] = act(
                    spec, {group.id: element}, state[name], spec.maps[name]
                )
            before = elements.get(group.id, action.identity(group))
            elements[group.id] = action.compose(group, element, before)
        if furthest < _CLOSE:
            break
    return Transform.of(spec, elements)


def balance_state(
    spec: PermutationSpec, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Folded weights in canonical gauge: balanced, but for the lengths of single units."""
    open_groups = _in_gauge(spec)
    if not open_groups:
        return dict(state)
    return _balancing(spec, state, open_groups).apply(state)


def _stretching(spec: PermutationSpec) -> list[Group]:
    """Groups whose elements may stretch what is written and shrink what is read."""
    return [g for g in spec.groups.values() if action_of(g).stretches]


def _in_gauge(spec: PermutationSpec) -> list[Group]:
    """Those that canonical gauge balances."""
    return [g for g in _stretching(spec) if not action_of(g).keeps_lengths]


def _balance_of(
    spec: PermutationSpec, group: Group, state: Mapping[str, Tensor]
) -> Tensor | None:
    """The element that balances one group; ``None`` where writers or readers are missing."""
    shape = (group.instances, group.size, group.size)
    grams = {power: torch.zeros(shape).double() for power in (1, -1)}
    for name in spec.tensors_of(group.id):
        axis_map = spec.maps[name]
        for component in axis_map.components:
            if component.group != group.id:
                continue
            if component.power not in grams:
                return None
            sites = state[name].reshape(axis_map.site_shape)
            units = rows_of_units(sites, component).reshape(*shape[:2], -1)
            grams[component.power] += (units @ units.mT).cpu()
    plus, minus = grams[1], grams[-1]
    if not bool(plus.any()) or not bool(minus.any()):
        return None
    return action_of(group).balance(group, plus, minus)


BALANCE = register_gauge(balance_state)
