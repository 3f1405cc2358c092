"""Soft decision trees, whose symmetries are more than permutations."""

from lightning_rebasin.trees.ensemble import SoftTreeEnsemble
from lightning_rebasin.trees.refit import refit_leaves
from lightning_rebasin.trees.shapes import TreeKind

__all__ = ["SoftTreeEnsemble", "TreeKind", "refit_leaves"]
