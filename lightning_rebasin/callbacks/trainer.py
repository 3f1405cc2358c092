"""What Lightning's trainer knows but does not declare: its connectors set these attributes after its class is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_rebasin.errors import RebasinError
from lightning_rebasin.landscape.pair import Processes


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of the trainer."""
    return cast(list[Callback], cast(Any, trainer).callbacks)


def is_dry_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries whether the code runs (``fast_dev_run``), so that nothing should be kept."""
    return bool(cast(Any, trainer).fast_dev_run)


def log_value(
    trainer: Trainer,
    module: LightningModule,
    name: str,
    value: float,
    **options: Any,
) -> None:
    """Log a value that a callback measured over a whole validation, the same one on every process."""
    # sync_dist only keeps Lightning from doubting that it is the same.  Names may already hold the index of a loader,
    # which Lightning refuses unless it is told not to add one.
    module.log(
        name,
        value,
        on_epoch=True,
        sync_dist=trainer.world_size > 1,
        add_dataloader_idx=False,
        batch_size=1,
        **options,
    )


def object_gatherer(trainer: Trainer) -> Callable[[object], list[Any]] | None:
    """A function that collects one object from every process, or ``None`` for a single process."""
    if trainer.world_size == 1:
        return None

    def gather(item: object) -> list[Any]:
        everyone: list[Any] = [None] * trainer.world_size
        # Lightning's all_gather takes tensors of one shape; processes may have logged different keys.
        torch.distributed.all_gather_object(everyone, item)
        return everyone

    return gather


@final
class TrainerProcesses(Processes):
    """The processes of a trainer.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._strategy = trainer.strategy
        self._gather = object_gatherer(trainer)

    @override
    def total(self, tensor: Tensor) -> Tensor:
        reduced: Tensor = self._strategy.reduce(tensor, reduce_op="sum")
        return reduced

    @override
    def mean(self, tensor: Tensor) -> Tensor:
        reduced: Tensor = self._strategy.reduce(tensor, reduce_op="mean")
        return reduced

    @override
    def agree(self, error: RebasinError | None) -> None:
        everyone = [error] if self._gather is None else self._gather(error)
        for other in everyone:
            if other is not None:
                raise other
