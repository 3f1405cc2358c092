"""LightningModules of this package's own."""

from lightning_rebasin.modules.merge import MergeModule

__all__ = ["MergeModule"]
