"""Rules over ATen operations, one file per family."""

from lightning_rebasin.symmetry.permutations.rules import (
    attention,
    concatenation,
    convolution,
    images,
    lookups,
    normalisation,
    order,
    pointwise,
    products,
    reduction,
    scatters,
    slices,
    stacking,
    views,
    writes,
)
from lightning_rebasin.symmetry.permutations.rules.registry import RULES

__all__ = [
    "RULES",
    "attention",
    "concatenation",
    "convolution",
    "images",
    "lookups",
    "normalisation",
    "order",
    "pointwise",
    "products",
    "reduction",
    "scatters",
    "slices",
    "stacking",
    "views",
    "writes",
]
