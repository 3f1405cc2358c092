"""The canonical gauge: of all weights that compute the same function, the ones that are compared.

Some symmetries have to be used up before others exist.  A stream of a transformer may only be rotated where no gain γ
of a norm acts on its units one by one; but what reads the norm is linear, so γ can be *folded* into it:

    ``W (γ ∘ n(x) + β) + b  =  (W·diag γ) n(x) + (b + W β)``

and the same network has γ = 1 and, if every reader has a bias, β = 0.  A :class:`Fold` says which tensors these are.
LayerNorm also subtracts the mean of the stream, so what is written along (1, …, 1) is never read: a :class:`Centre`
takes it out of the weights, which changes no output and makes two networks comparable.

:func:`fold` does both.  It leaves names, shapes and dtypes as they are, computes in float64, and does nothing to
weights that are folded already.  What is left of the gauge (equal lengths of writers and readers) belongs to the kinds
of the groups and is registered from above with :func:`register_gauge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError, StateDictError
from lightning_rebasin.symmetry.spec.fields import SpecFields
from lightning_rebasin.symmetry.spec.folds import Centre, Fold, Reader
from lightning_rebasin.symmetry.spec.passed_biases import (
    biases_to_list,
    fault_of,
    without_bias,
)

State = Mapping[str, Tensor]
#: Weights in another gauge, for a spec.
Gauge = Callable[[Any, State], dict[str, Tensor]]
#: Gains below this share of the largest one cannot be divided out of a shift.
_SMALLEST_GAIN = 1e-6
_GAUGES: list[Gauge] = []


def register_gauge(gauge: Gauge) -> Gauge:
    """Add a step to :func:`canonical_state`: rooms above know what the kinds of the groups still leave open.

    Args:
        gauge: Takes a spec and folded weights; returns weights of the same function.
    """
    _GAUGES.append(gauge)
    return gauge


def canonical_state(spec: SpecFields, state: State) -> dict[str, Tensor]:
    """Weights of the same function in canonical gauge: folded, centred, balanced.

    Args:
        spec: The spec.
        state: Its weights.

    Returns:
        The same names, shapes and dtypes.
    """
    found = fold(spec, state)
    for gauge in _GAUGES:
        found = gauge(spec, found)
    return found


def fold(spec: SpecFields, state: State) -> dict[str, Tensor]:
    """Fold gains and shifts into their readers and centre what is only read centred.

    Args:
        spec: Says what is folded where; without folds the state itself comes back, in a new dict.
        state: Weights.

    Raises:
        StateDictError: A gain is 0 where its shift would have to be divided by it.

    Example:
        >>> from lightning_rebasin import PermutationSpec
        >>> from lightning_rebasin.symmetry import TensorInfo
        >>> spec = PermutationSpec(
        ...     {}, {"norm": TensorInfo((2,)), "w": TensorInfo((1, 2))}, {},
        ...     folds=(Fold("norm", None, (Reader("w", 1),)),),
        ... )
        >>> fold(spec, {"norm": torch.tensor([2.0, 3.0]), "w": torch.ones(1, 2)})
        {'norm': tensor([1., 1.]), 'w': tensor([[2., 3.]])}
    """
    found = dict(state)
    for one in spec.folds:
        changed = _folded(one, found)
        _put(spec, found, changed)
    for bias in spec.biases:
        # After the folds: shifts of norms have gone into these biases.
        changed = without_bias(bias, found)
        _put(spec, found, changed)
    for centre in spec.centres:
        changed = {}
        for name, dim in centre.tensors:
            wide = found[name].double()
            changed[name] = wide - wide.mean(dim, keepdim=True)
        _put(spec, found, changed)
    return found


def _folded(one: Fold, state: State) -> dict[str, Tensor]:
    """The tensors that one fold changes, in float64."""
    gain = state[one.gain].double() + one.offset
    shift = None if one.shift is None else state[one.shift].double()
    neutral = torch.full_like(gain, one.neutral)
    changed: dict[str, Tensor] = {one.gain: neutral}
    if one.shift is not None and shift is not None:
        changed[one.shift] = torch.zeros_like(shift)
        if not one.absorbs_shift:
            changed[one.shift] = _divided(one, shift, gain)
    for reader in one.readers:
        weight = state[reader.weight].double()
        shape = [1] * weight.ndim
        shape[reader.dim] = len(gain)
        changed[reader.weight] = weight * gain.reshape(shape)
        if shift is not None and one.absorbs_shift:
            assert reader.bias is not None
            # The weight is a matrix: a bias has one entry for each row of what the reader gives.
            given = torch.tensordot(weight, shift, ([reader.dim], [0]))
            known = changed.get(reader.bias, state[reader.bias].double())
            changed[reader.bias] = known + given
    return changed


def _divided(one: Fold, shift: Tensor, gain: Tensor) -> Tensor:
    """A shift that stands before a gain of 1: ``β / γ``."""
    smallest = _SMALLEST_GAIN * gain.abs().max()
    if bool(((gain.abs() <= smallest) & (shift != 0)).any()):
        raise StateDictError(
            f"the gain {one.gain!r} is (nearly) 0 at some units and the shift {one.shift!r} is not: it cannot be "
            "folded into readers without a bias; infer the spec with kinds='permutation'"
        )
    return torch.where(shift == 0, shift, shift / gain)


def _put(spec: SpecFields, state: dict[str, Tensor], changed: State) -> None:
    """Write tensors into a state in their own dtypes, under all names that they are tied to."""
    for name, wide in changed.items():
        narrow = wide.to(state[name].dtype)
        state[name] = narrow
        for alias, origin in spec.aliases.items():
            if origin == name and alias in state:
                state[alias] = narrow


def folds_to_dict(spec: SpecFields) -> dict[str, Any]:
    """Folds and centres as plain JSON values; empty if there are none, so that files of permutations stay the same."""
    found: dict[str, Any] = {}
    if spec.folds:
        found["folds"] = [
            {
                "gain": one.gain,
                "shift": one.shift,
                "readers": [vars(reader) for reader in one.readers],
                # Files of gains that are stored as they are stay as they were.
                **({"offset": one.offset} if one.offset else {}),
            }
            for one in spec.folds
        ]
    if spec.centres:
        found["centres"] = [
            [list(pair) for pair in one.tensors] for one in spec.centres
        ]
    if spec.biases:
        found["biases"] = biases_to_list(spec.biases)
    return found


def has_gauge(spec: SpecFields) -> bool:
    """Whether something is folded, cancelled or centred before elements act."""
    return bool(spec.folds or spec.biases or spec.centres)


def folds_from_dict(data: Mapping[str, Any]) -> tuple[Fold, ...]:
    """Inverse of :func:`folds_to_dict`, for the folds; whatever is wrong raises some exception."""
    found = []
    for entry in data.get("folds", ()):
        readers = tuple(Reader(**reader) for reader in entry["readers"])
        for reader in readers:
            _require(str, reader.weight)
            _require(int, reader.dim)
            _require(str | None, reader.bias)
        _require(str, entry["gain"])
        _require(str | None, entry["shift"])
        offset = entry.get("offset", 0.0)
        _require(int | float, offset)
        found.append(Fold(entry["gain"], entry["shift"], readers, offset))
    return tuple(found)


def _require(kind: type | UnionType, value: object) -> None:
    """Raise unless a value from a file is of a type."""
    if not isinstance(value, kind):
        raise SpecError(f"the gauge cannot hold {value!r}")


def centres_from_dict(data: Mapping[str, Any]) -> tuple[Centre, ...]:
    """Inverse of :func:`folds_to_dict`, for the centres."""
    found = []
    for entry in data.get("centres", ()):
        pairs = tuple((str(name), int(dim)) for name, dim in entry)
        found.append(Centre(pairs))
    return tuple(found)


def check_gauge(spec: SpecFields) -> None:
    """Raise unless folds and centres name tensors of the spec, along dimensions that they have.

    Raises:
        SpecError: The message names the tensor.
    """
    for one in spec.folds:
        size = _size(spec, one.gain, 0)
        if one.shift is not None and _size(spec, one.shift, 0) != size:
            raise SpecError(
                f"the shift {one.shift!r} does not fit the gain {one.gain!r}"
            )
        for reader in one.readers:
            if _size(spec, reader.weight, reader.dim) != size:
                raise SpecError(
                    f"the gain {one.gain!r} does not fit dimension {reader.dim} of {reader.weight!r}"
                )
            if reader.bias is not None:
                _check_bias(spec, reader, reader.bias)
    shapes = {name: info.shape for name, info in spec.tensors.items()}
    for bias in spec.biases:
        fault = fault_of(bias, shapes)
        if fault:
            raise SpecError(fault)
    for centre in spec.centres:
        for name, dim in centre.tensors:
            _size(spec, name, dim)


def _check_bias(spec: SpecFields, reader: Reader, bias: str) -> None:
    """Raise unless a bias has one entry for each row of what its reader gives."""
    size = _size(spec, bias, 0)
    shape = spec.tensors[reader.weight].shape
    rows = (*shape[: reader.dim], *shape[reader.dim + 1 :])
    if rows != (size,):
        raise SpecError(
            f"the bias {bias!r} does not fit what {reader.weight!r} gives"
        )


def _size(spec: SpecFields, name: str, dim: int) -> int:
    info = spec.tensors.get(name)
    if info is None or not 0 <= dim < len(info.shape):
        raise SpecError(
            f"the gauge names dimension {dim} of {name!r}, which the spec does not have"
        )
    return info.shape[dim]
