"""Callbacks for a Lightning Trainer: barriers during training, and snapshots of the weights.

``loss_barrier.py``, ``input_barrier.py`` (pairs of inputs) and ``snapshot.py`` are the callbacks; ``reference.py`` says
what the model is compared with, ``alignment.py`` re-matches it, ``schedule.py`` says when, ``record.py`` where the
results go, and ``strategy.py`` which ways of distributing a model are refused.
"""

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
    "LossBarrier",
    "Measurement",
]
