"""What the checkpoint of a path holds beside the learned weights: how the ends are seen, and whose file it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.fixed_ends import FixedEnds

_STATE = "lightning_rebasin_path"


def save_path(
    checkpoint: dict[str, Any],
    word: str,
    trained: Sequence[str],
    ends: FixedEnds,
) -> None:
    """Add what a path needs; the file still loads with ``weights_only=True``.

    Args:
        checkpoint: Written to.
        word: The kind of path.
        trained: Names of the learned tensors, in the order in which they are kept.
        ends: Their permutations are kept, and their weights are not.
    """
    checkpoint[_STATE] = {
        "word": word,
        "trained": list(trained),
        "permutations": ends.to_state(),
    }


def load_path(
    checkpoint: dict[str, Any],
    word: str,
    trained: Sequence[str],
    ends: FixedEnds,
) -> None:
    """See the ends under their permutations again.

    Raises:
        ConfigurationError: The file holds another kind of path, or one of another network.
    """
    found = checkpoint.get(_STATE, {})
    if found.get("word") != word:
        raise ConfigurationError(
            f"this checkpoint was not written by a {word.capitalize()}Module"
        )
    if found["trained"] != list(trained):
        raise ConfigurationError(
            "this checkpoint was written for a network with other parameters"
        )
    ends.load_state(found["permutations"])
