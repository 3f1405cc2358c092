"""What the loss does between sets of weights.

``points.py`` and ``paths/`` say where: a point combines sets of weights, a path gives points.  ``probe.py`` is the
engine: it evaluates one batch at all points in one copy of the module; ``lightning_probe.py`` what it knows about
Lightning, ``copies.py`` the copy that is evaluated.  ``measure.py`` runs it over a data loader (``measure_points``),
``barrier.py`` is the value that comes out, ``trajectory.py`` and ``matrix.py`` the barrier over training.

The same engine measures any path (``path_curve.py``, ``lengths.py``), a plane (``loss_plane.py``), one direction
(``loss_profile.py``, ``directions.py``), the layers of two networks (``layer_barriers.py``; ``layers.py`` says what a
layer is) and how far outputs travel (``geodesic_length.py``).  What comes out is in the files ending in ``_values.py``,
which know no engine.  ``geodesic.py`` trains the shortest way, ``instability.py`` forks whole trainings
(``forked_runs.py``).

``predict.py`` predicts barriers from derivatives: ``differentiable.py`` is the loss as a function of weights,
``curvature.py`` takes its derivatives along a direction, ``quadrature.py`` integrates them.  ``features.py`` has
distances, angles and curvatures over a training.  ``shared_grid.py`` spreads the points of a barrier over processes.
"""

from lightning_rebasin.landscape.barrier import BarrierCurve, lambda_grid
from lightning_rebasin.landscape.directions import (
    filter_normalised,
    random_direction,
)
from lightning_rebasin.landscape.features import (
    FeatureHistory,
    FeatureRow,
    Features,
)
from lightning_rebasin.landscape.geodesic import geodesic_path
from lightning_rebasin.landscape.geodesic_length import geodesic_length
from lightning_rebasin.landscape.geodesic_values import (
    Geodesic,
    GeodesicLength,
)
from lightning_rebasin.landscape.instability import measure_instability
from lightning_rebasin.landscape.instability_values import Instability
from lightning_rebasin.landscape.layer_barriers import layer_barriers
from lightning_rebasin.landscape.layer_values import LayerBarriers
from lightning_rebasin.landscape.layers import layers_of
from lightning_rebasin.landscape.lengths import normalised_length
from lightning_rebasin.landscape.loss_plane import loss_plane
from lightning_rebasin.landscape.loss_profile import loss_profile
from lightning_rebasin.landscape.matrix import BarrierMatrix, barrier_matrix
from lightning_rebasin.landscape.measure import measure_barrier
from lightning_rebasin.landscape.path_curve import PathCurve, measure_path
from lightning_rebasin.landscape.plane_values import LossPlane
from lightning_rebasin.landscape.predict import predict_barrier
from lightning_rebasin.landscape.prediction_values import (
    BarrierPrediction,
    LayerPrediction,
)
from lightning_rebasin.landscape.profile_values import LossProfile
from lightning_rebasin.landscape.shared_grid import (
    Share,
    measure_shared_barrier,
)
from lightning_rebasin.landscape.trajectory import Snapshot, load_trajectory

__all__ = [
    "BarrierCurve",
    "BarrierMatrix",
    "BarrierPrediction",
    "FeatureHistory",
    "FeatureRow",
    "Features",
    "Geodesic",
    "GeodesicLength",
    "Instability",
    "LayerBarriers",
    "LayerPrediction",
    "LossPlane",
    "LossProfile",
    "PathCurve",
    "Share",
    "Snapshot",
    "barrier_matrix",
    "filter_normalised",
    "geodesic_length",
    "geodesic_path",
    "lambda_grid",
    "layer_barriers",
    "layers_of",
    "load_trajectory",
    "loss_plane",
    "loss_profile",
    "measure_barrier",
    "measure_instability",
    "measure_path",
    "measure_shared_barrier",
    "normalised_length",
    "predict_barrier",
    "random_direction",
]
