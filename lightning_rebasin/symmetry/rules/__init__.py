"""Rules over ATen operations, one file per family."""

from lightning_rebasin.symmetry.rules import composite, indexing, joining, linear, pointwise, reduction, shape
from lightning_rebasin.symmetry.rules.base import RULES

__all__ = ["RULES", "composite", "indexing", "joining", "linear", "pointwise", "reduction", "shape"]
