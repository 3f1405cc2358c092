"""Buffers that several models share: what is the same in all of them must stay where it is.

A buffer may be as free as a weight: reordering random features, or a table of positions, together with everything that
reads it leaves the function unchanged.  But where two models are matched and averaged, a table that is *the same in
both* (sinusoidal positions, attention slopes) already fits; moved in one of them only, its average with the other would
mean nothing.  So it pins the units that it would move.  Statistics of normalisation layers, and what such a layer keeps
beside them, always go with their channels: two fresh networks agree in them by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from lightning_rebasin.symmetry.spec.fields import (
    SpecFields,
)
from lightning_rebasin.symmetry.spec.pin import S, pin_group
from lightning_rebasin.symmetry.spec.values import (
    Group,
    rows_of_units,
)

State = Mapping[str, Tensor]
#: Why such units are pinned; the name of the buffer is filled in.
REASON = "buffer {!r} is the same in the models that are matched"
_STATISTICS = ("running_mean", "running_var")


def pin_identical_buffers(
    spec: S, states: Sequence[State | Callable[[], State]]
) -> S:
    """Pin the groups that would move a buffer which two of the models have in common.

    Args:
        spec: What may be permuted in one model.
        states: The weights of the models that are to be matched, or functions that load them (called only if there is
            a buffer to look at).  A missing buffer counts as different.

    Returns:
        The spec itself if there is nothing to pin, else a new one that says why in ``explain``.

    Example:
        >>> from dataclasses import replace
        >>> from lightning_rebasin import PermutationSpec
        >>> table = {"encoder.weight": ("h", None), "positions": (None, "h"), "decoder.weight": (None, "h")}
        >>> shapes = {"encoder.weight": (3, 2), "positions": (4, 3), "decoder.weight": (1, 3)}
        >>> spec = PermutationSpec.from_table(table, shapes)
        >>> tensors = {**spec.tensors, "positions": replace(spec.tensors["positions"], kind="buffer")}
        >>> spec = replace(spec, tensors=tensors)
        >>> a = {"positions": torch.arange(12.0).reshape(4, 3)}
        >>> pin_identical_buffers(spec, [a, {"positions": a["positions"] + 1}]) is spec
        True
        >>> pin_identical_buffers(spec, [a, a]).pinned[0].reason
        "buffer 'positions' is the same in the models that are matched"
    """
    for name, tensor in _shared(spec, states).items():
        while (group := _to_pin(spec, name, tensor)) is not None:
            spec = pin_group(spec, group, REASON.format(name))
    if spec.untied is not None:
        untied = pin_identical_buffers(spec.untied, states)
        if untied is not spec.untied:
            spec = replace(spec, untied=untied)
    return spec


def _shared(
    spec: SpecFields, states: Sequence[State | Callable[[], State]]
) -> dict[str, Tensor]:
    """Buffers that may move and that two of the models have in common."""
    names = _movable_buffers(spec)
    found: dict[str, Tensor] = {}
    if not names:
        # nothing has to be loaded
        return found
    loaded = []
    for state in states:
        loaded.append(
            _pick(spec, state() if callable(state) else state, names)
        )
    for name in names:
        tensors = [state[name] for state in loaded if name in state]
        for a, b in combinations(tensors, 2):
            if _equal(a, b):
                found[name] = a
                break
    return found


def _movable_buffers(spec: SpecFields) -> list[str]:
    """Buffers that some group moves, without those of normalisation layers."""
    normalised = set()
    for name in spec.tensors:
        if name.endswith(_STATISTICS):
            normalised.add(name.rpartition(".")[0])
    buffers = [
        name for name in spec.maps if spec.tensors[name].kind == "buffer"
    ]
    return [
        name for name in buffers if name.rpartition(".")[0] not in normalised
    ]


def _pick(spec: SpecFields, state: State, names: Sequence[str]) -> State:
    """The buffers that a state has in the right shape; what is wrong with others is said elsewhere."""
    found = {}
    for name in names:
        if (
            name in state
            and tuple(state[name].shape) == spec.tensors[name].shape
        ):
            found[name] = state[name].detach()
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape say the same, up to the rounding of the narrower dtype."""
    b = b.to(a.device)
    if a.dtype != b.dtype and a.is_floating_point() and b.is_floating_point():
        narrow = max(
            a.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps
        )
        a, b = a.to(narrow), b.to(narrow)
    return bool(torch.equal(a, b))


def _to_pin(spec: SpecFields, name: str, tensor: Tensor) -> str | None:
    """A group whose permutations change the tensor's values, the innermost first; ``None`` if none does."""
    axis_map = spec.maps.get(name)
    if axis_map is None:
        return None
    for component in axis_map.components:
        rows = rows_of_units(tensor.reshape(axis_map.site_shape), component)
        group: Group | None = spec.groups[component.group]
        assert group is not None
        units = component.units(group)
        values = rows.reshape(*group.shape[:-1], units, -1)
        level = len(group.shape) - 1
        while group is not None:
            # all units of the group hold the same
            alike = (values == values.narrow(level, 0, 1)).all()
            if not bool(alike):
                return group.id
            group, level = group.parent, level - 1
    return None
