"""What a refit did, layer by layer and as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal

from lightning_rebasin.merging.refit.fitted import LeftLayer
from lightning_rebasin.merging.statistics import Module

Method = Literal["naive", "reset", "repair", "refit"]
Criterion = Literal["distance", "loss"]


@dataclass(frozen=True)
class LayerFit:
    """How well one layer was fitted.

    Args:
        layer: Name of its weight.
        before: Squared error of the averaged weights, rescaled to the target's spread, on held-out samples; relative
            to the variance of the target.
        after: The same of the fitted weights.
        ridge: Strength of the pull towards the rescaled average; infinite if that was best.
        rows_per_unknown: Rows (samples × positions) for each unknown of one output.
        joins: Whether the layer was fitted to what a stream lacks.
        absorbed: Name of the batch norm that the layer took in; empty for none.
    """

    layer: str
    before: float
    after: float
    ridge: float
    rows_per_unknown: float
    joins: bool
    absorbed: str


@dataclass(frozen=True, eq=False)
class Refit(Generic[Module]):
    """A merged network and how it came about.

    Args:
        module: The best of the merged networks, in eval mode.
        method: Which one it is.
        scores: Score of each of them on held-out samples, lower is better.
        criterion: What the scores are: distance to the mean of the ends' outputs relative to its variance, or the loss
            that was given.
        layers: The fitted layers in the order of the forward pass.
        left: Layers that were not fitted, and why.
        samples: Numbers of samples that were fitted and held out.
    """

    module: Module
    method: Method
    scores: Mapping[Method, float]
    criterion: Criterion
    layers: tuple[LayerFit, ...]
    left: tuple[LeftLayer, ...]
    samples: tuple[int, int]
