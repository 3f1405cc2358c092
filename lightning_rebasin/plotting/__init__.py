"""Pictures of what ``landscape/`` and ``inputs/`` measured.

Every function returns a matplotlib ``Figure`` and leaves pyplot's global state alone, so that it can be called from a
callback in the middle of a training.  matplotlib is an extra: ``pip install 'lightning-rebasin[plot]'``.
"""

from lightning_rebasin.plotting.curves import (
    plot_barriers,
    plot_history,
    plot_matrix,
)
from lightning_rebasin.plotting.features import plot_features
from lightning_rebasin.plotting.geodesic import (
    plot_energies,
    plot_output_lengths,
)
from lightning_rebasin.plotting.inputs import plot_inputs
from lightning_rebasin.plotting.instability import plot_instability
from lightning_rebasin.plotting.layers import plot_layers
from lightning_rebasin.plotting.page import Frame, write_page
from lightning_rebasin.plotting.plane import plot_plane
from lightning_rebasin.plotting.prediction import plot_prediction
from lightning_rebasin.plotting.profile import plot_profiles
from lightning_rebasin.plotting.star import plot_star
from lightning_rebasin.plotting.style import require_matplotlib

__all__ = [
    "Frame",
    "plot_barriers",
    "plot_energies",
    "plot_features",
    "plot_history",
    "plot_inputs",
    "plot_instability",
    "plot_layers",
    "plot_matrix",
    "plot_output_lengths",
    "plot_plane",
    "plot_prediction",
    "plot_profiles",
    "plot_star",
    "require_matplotlib",
    "write_page",
]
