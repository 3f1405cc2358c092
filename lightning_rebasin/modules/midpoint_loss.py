"""What a MergeModule minimises between its ends: the user's loss, or without labels a distance of outputs."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.inner import (
    InnerModel,
    LossFunction,
    LossOfWeights,
)
from lightning_rebasin.modules.outputs import (
    distance,
    evaluating,
    mixed_outputs,
    outputs_at,
)

#: Where the loss comes from: the distance of outputs, a function, or the network's own ``training_step``.
LossChoice = Literal["outputs"] | LossFunction | None


@final
class MidpointLoss:
    """The loss of a batch at a point between two ends.

    Args:
        inner: The network.
        ends: The two ends.
        without_labels: Compare outputs with the mix of the ends' outputs instead of computing the network's loss.
    """

    def __init__(
        self, inner: InnerModel, ends: Endpoints, *, without_labels: bool
    ) -> None:
        self.inner = inner
        self.ends = ends
        self._without_labels = without_labels

    def of(self, batch: Any, batch_idx: int, lam: float) -> LossOfWeights:
        """The loss of one batch as a function of the weights.  What does not depend on them is computed once.

        Args:
            batch: What the data loader gave.
            batch_idx: Its number.
            lam: Where the weights are, between the reference at 0 and the source at 1.
        """
        if not self._without_labels:
            return lambda weights: self.inner.loss_at(
                weights, batch, batch_idx
            )
        network, ends = self.inner.model, self.ends
        # A transform of the source would answer the same, so the source itself does.
        states = (
            ends.callable_weights(ends.reference),
            ends.callable_weights(ends.source),
        )
        wanted = mixed_outputs(network, states, batch, lam)
        return lambda weights: distance(
            outputs_at(network, weights, batch), wanted
        )

    def evaluating(self) -> Any:
        """A context in which the network is in eval mode."""
        return evaluating(self.inner)


def inner_loss(choice: LossChoice) -> LossFunction | None:
    """What the network inside runs on a batch, for a choice of the loss.

    Raises:
        ConfigurationError: A word that is not a choice.
    """
    if choice == "outputs":
        return _run
    if isinstance(choice, str):
        raise ConfigurationError(
            f"loss={choice!r} is unknown; choose 'outputs' (no labels are needed), a function of a network and a "
            "batch, or None for training_step"
        )
    return choice


def _run(network: nn.Module, batch: Any) -> Tensor:
    """Run a network on a batch, as batch norms need it; there is no loss."""
    outputs_at(network, {}, batch)
    return torch.zeros(())
