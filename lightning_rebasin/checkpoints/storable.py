"""Which plain values ``torch.load(weights_only=True)`` reads back, and what is left of the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

#: What torch's safe loader reads back.
_PLAIN = (
    bool,
    int,
    float,
    str,
    bytes,
    complex,
    torch.dtype,
    torch.device,
)


def storable(value: Any, where: str, dropped: list[str]) -> Any:
    """``value`` with only what ``weights_only=True`` accepts; what is left out is named in ``dropped``.

    Args:
        value: Anything.
        where: How to call it in ``dropped``.
        dropped: Names of what was left out are appended here.

    Returns:
        The value without what cannot be stored; :data:`NOTHING` if nothing is left.
    """
    if value is None or isinstance(value, _PLAIN):
        # A subclass (an enum that is a string) would need its own class to load.
        ours = type(value).__module__ in ("builtins", "torch")
        return value if ours else _base_value(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor).clone()
    if isinstance(value, Mapping):
        return _storable_mapping(value, where, dropped)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return _storable_items(value, where, dropped)
    dropped.append(f"{where} ({value!r:.80})")
    return NOTHING


def _storable_mapping(
    value: Mapping[Any, Any], where: str, dropped: list[str]
) -> Any:
    items = {}
    for key, item in value.items():
        kept = storable(item, f"{where}.{key}".lstrip("."), dropped)
        if kept is not NOTHING and _is_plain_key(key):
            items[key] = kept
    return OrderedDict(items) if isinstance(value, OrderedDict) else items


def _storable_items(
    value: Collection[Any], where: str, dropped: list[str]
) -> Any:
    members = []
    for i, item in enumerate(value):
        kept = storable(item, f"{where}[{i}]", dropped)
        if kept is not NOTHING:
            members.append(kept)
    if isinstance(value, list):
        return members
    return tuple(members) if isinstance(value, tuple) else set(members)


class _Nothing:
    """Marks what cannot be stored."""


#: What :func:`storable` returns for a value that cannot be stored.
NOTHING = _Nothing()


def _base_value(value: Any) -> Any:
    """Enumeration members and NumPy's subclasses of ``float`` and ``str`` as the builtin they extend."""
    kinds: tuple[type[Any], ...] = (bool, int, float, str, bytes, complex)
    return next(
        (kind(value) for kind in kinds if isinstance(value, kind)), value
    )


def _is_plain_key(key: Any) -> bool:
    return key is None or isinstance(key, str | int | float | bool)
