"""Functions that are compiled when they are first called, for what neither torch nor NumPy does fast.

Importing this module takes a third of a second, so only import it where a problem is large enough to pay for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(
    *liberties: str,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile on first use and keep the machine code, where there is any place to keep it.

    Args:
        *liberties: What the compiler may do with floating-point numbers, in LLVM's words: ``"nnan"`` (there is no NaN),
            ``"nsz"`` (zero has no sign).

    Returns:
        A decorator.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"fastmath": set(liberties), "nogil": True}
        try:
            made: Callable[..., Any] = njit(cache=True, **options)(function)
        except RuntimeError:  # neither the installation nor the user's cache folder can be written
            made = njit(**options)(function)
        return made

    return decorate
