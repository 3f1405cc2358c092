"""What the loss does between sets of weights.

``points.py`` and ``paths/`` say where: a point combines sets of weights, a path gives points.  ``probe.py`` is the
engine: it evaluates one batch at all points in one copy of the module; ``lightning_probe.py`` what it knows about
Lightning, ``copies.py`` the copy that is evaluated.  ``measure.py`` runs it over a data loader (``measure_points``),
``barrier.py`` is the value that comes out, ``trajectory.py`` and ``matrix.py`` the barrier over training.
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
