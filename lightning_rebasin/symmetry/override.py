"""The old home of :mod:`lightning_rebasin.symmetry.edit.override`; what is taken from here warns.

Import the four functions from :mod:`lightning_rebasin.symmetry` instead.
"""

from __future__ import annotations

import warnings
from typing import Any

from lightning_rebasin.symmetry.edit import override as _home

_MOVED = ("free_group", "pin_group", "pin_tensor", "tie_groups")


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__} has moved: import {name} from lightning_rebasin.symmetry",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(_home, name)
