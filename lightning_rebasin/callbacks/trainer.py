"""What Lightning's trainer knows but does not declare: its connectors set these attributes after its class is made."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, Trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of the trainer."""
    return cast(list[Callback], cast(Any, trainer).callbacks)


def is_dry_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries whether the code runs (``fast_dev_run``), so that nothing should be kept."""
    return bool(cast(Any, trainer).fast_dev_run)
