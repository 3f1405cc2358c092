"""One set of weights out of several aligned ones, and the statistics that go with it.

``interpolate.py`` averages; ``statistics.py`` re-estimates batch norms, ``repair.py`` gives every channel the mean and
spread it should have, ``refit/`` solves the layers by least squares.
"""

import warnings
from typing import Any

from lightning_rebasin.merging.interpolate import average, interpolate
from lightning_rebasin.merging.refit import LayerFit, LeftLayer, Refit, refit
from lightning_rebasin.merging.repair import LayerVariance, Repair, repair
from lightning_rebasin.merging.statistics import reset_batch_norm

__all__ = [
    "LayerFit",
    "LayerVariance",
    "LeftLayer",
    "Refit",
    "Repair",
    "average",
    "interpolate",
    "refit",
    "repair",
    "reset_batch_norm",
]


def __getattr__(name: str) -> Any:
    """``SiteVariance`` is the name that ``LayerVariance`` had."""
    if name == "SiteVariance":
        warnings.warn(
            "SiteVariance is called LayerVariance now",
            DeprecationWarning,
            stacklevel=2,
        )
        return LayerVariance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
