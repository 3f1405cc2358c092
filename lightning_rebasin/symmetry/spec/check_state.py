"""Whether weights have exactly the tensors of a spec."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_rebasin.errors import NonFiniteError, StateDictError
from lightning_rebasin.symmetry.spec.fields import SpecFields
from lightning_rebasin.symmetry.spec.values import TensorInfo


def check_state(
    spec: SpecFields,
    state: Mapping[str, Tensor],
    what: str,
    *,
    finite: bool,
) -> None:
    """Raise unless ``state`` has exactly the tensors of a spec, in their shapes.

    Args:
        spec: The spec.
        state: Weights to check.
        what: How to call them in the message ("reference", a file name).
        finite: Also refuse NaN and infinity in floating-point tensors.

    Raises:
        StateDictError: A tensor is missing, extra or has another shape; the message names it.
        NonFiniteError: A tensor holds NaN or infinity.
    """
    _check_names(spec.tensors, state, what)
    for name, info in spec.tensors.items():
        tensor = state[name]
        if tensor.shape != info.shape:
            raise StateDictError(
                f"{what}: tensor {name!r} has shape {tuple(tensor.shape)}, the spec says {info.shape}"
            )
        if finite and _has_holes(tensor):
            raise NonFiniteError(
                f"{what}: tensor {name!r} holds NaN or infinity"
            )


def _check_names(
    tensors: Mapping[str, TensorInfo], state: Mapping[str, Tensor], what: str
) -> None:
    missing = [name for name in tensors if name not in state]
    extra = [name for name in state if name not in tensors]
    if missing or extra:
        raise StateDictError(
            f"{what} does not fit the spec: {_named('missing', missing)}{_named('unexpected', extra)}"
            "is it the same architecture, and are prefixes such as 'module.' stripped?"
        )


def _has_holes(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN or infinity."""
    return tensor.is_floating_point() and not bool(
        torch.isfinite(tensor).all()
    )


def _named(word: str, names: list[str]) -> str:
    """``"missing 'a', 'b' (+3 more); "`` or nothing."""
    if not names:
        return ""
    more = f" (+{len(names) - 3} more)" if len(names) > 3 else ""
    return f"{word} {', '.join(map(repr, names[:3]))}{more}; "
