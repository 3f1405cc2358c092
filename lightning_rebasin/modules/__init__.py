"""LightningModules of this package's own."""

from lightning_rebasin.modules.curve import CurveModule
from lightning_rebasin.modules.curve_report import CurveReport
from lightning_rebasin.modules.merge import MergeModule
from lightning_rebasin.modules.soft_trees import SoftTreeModule
from lightning_rebasin.modules.star import StarModule
from lightning_rebasin.modules.star_report import StarReport

__all__ = [
    "CurveModule",
    "CurveReport",
    "MergeModule",
    "SoftTreeModule",
    "StarModule",
    "StarReport",
]
