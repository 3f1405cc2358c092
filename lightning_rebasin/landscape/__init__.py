"""What the loss does between sets of weights.

``barrier.py`` is the value, ``measure.py`` the function that makes one, ``probe.py`` the engine that evaluates other
weights of a module (all knowledge about Lightning is there), ``trajectory.py`` and ``matrix.py`` the barrier over
training.
"""

from lightning_rebasin.landscape.barrier import BarrierCurve, lambda_grid
from lightning_rebasin.landscape.matrix import BarrierMatrix, barrier_matrix
from lightning_rebasin.landscape.measure import measure_barrier
from lightning_rebasin.landscape.trajectory import Snapshot, load_trajectory

__all__ = [
    "BarrierCurve",
    "BarrierMatrix",
    "Snapshot",
    "barrier_matrix",
    "lambda_grid",
    "load_trajectory",
    "measure_barrier",
]
