"""Callbacks for a Lightning Trainer: the barrier during training, and snapshots of the weights.

``loss_barrier.py`` and ``snapshot.py`` are the callbacks; ``reference.py`` says what the model is compared with,
``alignment.py`` re-matches it, ``schedule.py`` says when, ``record.py`` where the results go, and ``strategy.py`` which
ways of distributing a model are refused.
"""

from lightning_rebasin.callbacks.loss_barrier import LossBarrier
from lightning_rebasin.callbacks.record import Measurement
from lightning_rebasin.callbacks.snapshot import CheckpointSnapshot

__all__ = ["CheckpointSnapshot", "LossBarrier", "Measurement"]
