"""Which ways of distributing a model over processes the callbacks can work with."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)

from lightning_rebasin.errors import ConfigurationError


def refuse_sharded(trainer: Trainer, name: str) -> None:
    """Raise if no process holds whole weights.

    Interpolation is element-wise and would work on shards, but a reference would have to be sharded the same way, and
    permuting needs whole tensors; so nothing is measured rather than something wrong.

    Raises:
        ConfigurationError: The strategy shards the weights.
    """
    if isinstance(
        trainer.strategy,
        (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy),
    ):
        raise ConfigurationError(
            f"{name} needs whole weights on every process, and {type(trainer.strategy).__name__} shards them. Save "
            "checkpoints with ModelCheckpoint and measure afterwards with 'lightning-rebasin barrier', which reads the "
            "sharded folders of FSDP as they are; or train with strategy='ddp'"
        )
