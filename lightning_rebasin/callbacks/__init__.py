"""Callbacks for a Lightning Trainer: the barrier and the landscape during training, and snapshots of the weights.

``loss_barrier.py``, ``features.py``, ``input_barrier.py`` (pairs of inputs) and ``snapshot.py`` are the callbacks;
``reference.py`` says what the model is compared with, ``alignment.py`` re-matches it, ``schedule.py`` says when,
``running.py`` and ``recording.py`` are measurements under way, ``record.py`` says where the results go, and
``strategy.py`` which ways of distributing a model are refused.
"""

from lightning_rebasin.callbacks.features import LandscapeFeatures
from lightning_rebasin.callbacks.input_barrier import (
    InputBarrier,
    InputMeasurement,
)
from lightning_rebasin.callbacks.loss_barrier import LossBarrier
from lightning_rebasin.callbacks.record import Measurement
from lightning_rebasin.callbacks.snapshot import CheckpointSnapshot

__all__ = [
    "CheckpointSnapshot",
    "InputBarrier",
    "InputMeasurement",
    "LandscapeFeatures",
    "LossBarrier",
    "Measurement",
]
