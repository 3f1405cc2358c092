"""Rules over ATen operations, one file per family."""

from lightning_rebasin.symmetry.permutations.rules import (
    composite,
    indexing,
    joining,
    linear,
    pointwise,
    reduction,
    shape,
)
from lightning_rebasin.symmetry.permutations.rules.base import RULES

__all__ = [
    "RULES",
    "composite",
    "indexing",
    "joining",
    "linear",
    "pointwise",
    "reduction",
    "shape",
]
