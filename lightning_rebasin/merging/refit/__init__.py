"""Weights of a merged network by least squares, layer by layer."""

from lightning_rebasin.merging.refit.contest import Contest
from lightning_rebasin.merging.refit.fitted import LeftLayer
from lightning_rebasin.merging.refit.network import refit, refit_in
from lightning_rebasin.merging.refit.report import LayerFit, Refit

__all__ = ["Contest", "LayerFit", "LeftLayer", "Refit", "refit", "refit_in"]
