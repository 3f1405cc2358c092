"""One set of weights out of several aligned ones, and the statistics that go with it."""

from lightning_rebasin.merging.interpolate import average, interpolate
from lightning_rebasin.merging.repair import Repair, SiteVariance, repair
from lightning_rebasin.merging.statistics import reset_batch_norm

__all__ = [
    "Repair",
    "SiteVariance",
    "average",
    "interpolate",
    "repair",
    "reset_batch_norm",
]
