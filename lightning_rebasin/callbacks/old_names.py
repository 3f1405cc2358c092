"""Options under the names that they had before they took Lightning's own words."""

from __future__ import annotations

import warnings
from typing import Any

from lightning_rebasin.errors import ConfigurationError


def renamed(old: str, old_value: Any, new: str, new_value: Any) -> Any:
    """The value of an option that may be given under its old name.

    Args:
        old: The old name.
        old_value: What was given under it, ``None`` for nothing.
        new: The new name.
        new_value: What was given under it, ``None`` for nothing.

    Raises:
        ConfigurationError: It was given under both names.

    Example:
        >>> renamed("folder", None, "dirpath", "runs/a")
        'runs/a'
    """
    if old_value is None:
        return new_value
    if new_value is not None:
        raise ConfigurationError(
            f"{old}= is the old name of {new}=; give only {new}="
        )
    warnings.warn(
        f"{old}= is now called {new}=, as in Lightning; the old name will go",
        DeprecationWarning,
        stacklevel=3,
    )
    return old_value
