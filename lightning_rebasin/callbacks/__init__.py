"""Callbacks for a Lightning Trainer: the barrier and the landscape during training, and snapshots of the weights.

``loss_barrier.py``, ``features.py``, ``input_barrier.py`` (pairs of inputs) and ``snapshot.py`` are the callbacks;
``reference.py`` says what the model is compared with, ``matching.py`` and ``alignment.py`` how it is re-matched,
``schedule.py`` when, ``running.py`` and ``recording.py`` are measurements under way, ``record.py`` and ``publish.py``
say where the results go, ``checks.py`` and ``strategy.py`` what is refused.
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
