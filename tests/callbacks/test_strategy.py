"""Strategies that shard the weights are refused, the others are not."""

from __future__ import annotations

import pytest
from helpers.trainers import trainer_in
from lightning.pytorch import strategies

from lightning_rebasin import CheckpointSnapshot, LossBarrier
from lightning_rebasin.callbacks.strategy import refuse_sharded
from lightning_rebasin.errors import ConfigurationError


@pytest.mark.parametrize(
    "name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"]
)
def test_sharded_strategies_are_refused_with_advice(name):
    class FakeTrainer:
        strategy = object.__new__(
            getattr(strategies, name)
        )  # DeepSpeed itself is not installed

    for callback in (LossBarrier, CheckpointSnapshot):
        with pytest.raises(
            ConfigurationError,
            match=rf"{name} shards.*lightning-rebasin barrier",
        ):
            refuse_sharded(FakeTrainer(), callback.__name__)


def test_one_device_is_fine(tmp_path):
    refuse_sharded(trainer_in(tmp_path), "LossBarrier")
