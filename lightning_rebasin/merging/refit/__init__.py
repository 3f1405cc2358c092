"""Weights of a merged network by least squares, layer by layer."""

from lightning_rebasin.merging.refit.fitted import LeftLayer
from lightning_rebasin.merging.refit.network import refit, score_rivals
from lightning_rebasin.merging.refit.report import LayerFit, Refit

__all__ = ["LayerFit", "LeftLayer", "Refit", "refit", "score_rivals"]
