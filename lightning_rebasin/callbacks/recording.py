"""One record of landscape features under way, between the start and the end of a validation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_rebasin.callbacks.trainer import TrainerProcesses
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    DataError,
)
from lightning_rebasin.landscape.curvature import (
    DerivativeAverages,
    Derivatives,
    difference,
)
from lightning_rebasin.landscape.differentiable import DifferentiableLoss
from lightning_rebasin.landscape.features import (
    WHOLE,
    FeatureRow,
    Features,
    Places,
    geometry,
)
from lightning_rebasin.landscape.layers import Layers
from lightning_rebasin.landscape.points import State
from lightning_rebasin.landscape.weights import parameter_names


class Recording:
    """A record under way.

    Args:
        module: The model as validation sees it.
        places: The networks that are compared.
        layers: The layers and their tensors; only their parameters count.
        loss: What is differentiated; ``None`` takes no derivatives.
    """

    def __init__(
        self,
        module: LightningModule,
        places: Places,
        layers: Layers,
        loss: DifferentiableLoss | None,
    ) -> None:
        self._places = places
        parameters = parameter_names(module)
        self._parts = {WHOLE: tuple(parameters)}
        inner = {}
        for layer, names in layers.items():
            own = tuple(name for name in names if name in parameters)
            if own:
                inner[layer] = own
        self._parts.update(inner)
        self._works = True
        self._averages: DerivativeAverages | None = None
        if loss is not None:
            ends = [
                _only(state, parameters)
                for state in (places.current, places.reference)
            ]
            self._averages = DerivativeAverages(
                loss, difference(*ends), inner, ends[0]
            )

    def update(self, batch: Any | None) -> None:
        """Take derivatives on a batch; a loss without any costs a warning, not the training."""
        if self._averages is None or batch is None or not self._works:
            return
        try:
            self._averages.update(self._places.current, batch)
        except (ConfigurationError, DataError) as error:
            self._works = False
            warnings.warn(
                f"LandscapeFeatures records no derivatives: {error}",
                BarrierWarning,
                stacklevel=2,
            )

    def finish(self, trainer: Trainer) -> FeatureRow:
        """The features; collective."""
        parts = {}
        for layer, names in self._parts.items():
            parts[layer] = geometry(self._places, names)
        loss = math.nan
        found = self._derivatives(trainer)
        if found is not None:
            loss = found.loss
            for layer, features in parts.items():
                parts[layer] = self._with(features, layer, found)
        step, epoch = trainer.global_step, trainer.current_epoch
        return FeatureRow(step, epoch, loss, parts)

    def _derivatives(self, trainer: Trainer) -> Derivatives | None:
        """Those of all processes, if there are any."""
        if self._averages is None:
            return None
        try:
            found = self._averages.mean(TrainerProcesses(trainer).total)
        except DataError:
            return None
        return found if self._works else None

    def _with(
        self, features: Features, layer: str, found: Derivatives
    ) -> Features:
        """The features of a layer with its derivatives."""
        squares = [found.squares[name] for name in self._parts[layer]]
        slopes: Mapping[str, float] = {
            WHOLE: found.slope,
            **found.layer_slopes,
        }
        curvatures = {WHOLE: found.curvature, **found.layer_curvatures}
        return replace(
            features,
            gradient_norm=math.sqrt(math.fsum(squares)),
            slope=slopes[layer],
            curvature=curvatures[layer],
        )


def _only(state: State, names: Sequence[str]) -> State:
    """Some tensors of a state."""
    return {name: state[name] for name in names}
