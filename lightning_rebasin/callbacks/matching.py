"""How a LossBarrier matches the reference to the running model: the choices, and which of them can work together."""

from __future__ import annotations

from typing import Literal

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.pair import METHODS

#: Which curves are measured: to the reference as it is, to the re-matched reference (and how it is matched), or both.
Matching = Literal[
    "none", "weight", "activation", "correlation", "auto", "both"
]
_METHODS: dict[Matching, tuple[str, ...]] = {
    "none": (),
    "weight": ("weight",),
    "activation": ("activation",),
    "correlation": ("correlation",),
    "auto": METHODS,
    "both": ("weight",),
}


def methods_of(matching: Matching) -> tuple[str, ...]:
    """The ways to match that a choice tries; empty if nothing is matched.

    Example:
        >>> methods_of("both")
        ('weight',)
    """
    return _METHODS[matching]


def has_naive_curve(matching: Matching) -> bool:
    """Whether there is a curve to the reference as it is."""
    return matching in ("none", "both")


def check_choices(
    matching: Matching, convention: str, batch_norm_batches: int | None
) -> None:
    """Refuse options that are not among the choices.

    Args:
        matching: Which curves are measured.
        convention: What is subtracted from the worst point.
        batch_norm_batches: Training batches that are kept; ``None`` if the user does not say.

    Raises:
        ConfigurationError: The message names the option and the choices.
    """
    if matching not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise ConfigurationError(
            f"matching={matching!r}; choose one of {known}"
        )
    if convention not in ("mean", "chord"):
        raise ConfigurationError(
            f"convention={convention!r}; choose 'mean' or 'chord'"
        )
    if batch_norm_batches is None:
        return
    if batch_norm_batches < 0:
        raise ConfigurationError(
            f"batch_norm_batches={batch_norm_batches}: must be 0 or more"
        )
    if not batch_norm_batches and set(_METHODS[matching]) - {"weight"}:
        raise ConfigurationError(
            f"batch_norm_batches=0 keeps no training batch, and matching={matching!r} compares activations on them: "
            "give a number, or leave it out"
        )
