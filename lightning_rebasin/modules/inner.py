"""The user's network inside one of our modules: computing its own training loss with weights that are handed in.

The network keeps the shape it had: its ``training_step`` (or a loss function) is called as it is, with other weights
put in its place for the length of the call by :func:`torch.func.functional_call`, so that gradients reach whatever
those weights were computed from.  Three things in a ``training_step`` would otherwise fail or do harm there, and are
redirected:

* ``self.log`` raises outside of the trainer's own hooks of that module: it goes to a function of the outer module.
* ``self.trainer`` is missing: it is set to the outer module's trainer.
* the weights of the user's own instance must not change: the network is a copy whose parameters do not require
  gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.copies import copy_module
from lightning_rebasin.landscape.other_lightning import refuse_other_lightning
from lightning_rebasin.symmetry.run.lightning import LogSink

#: Computes the loss of one batch from the network and the batch.
LossFunction = Callable[[nn.Module, Any], Tensor]
#: The loss of one batch at any weights.
LossOfWeights = Callable[[Mapping[str, Tensor]], Tensor]


@final
class InnerModel(nn.Module):
    """A copy of the user's network that computes its loss at any weights.

    Args:
        model: The network; a LightningModule with automatic optimisation unless ``loss`` is given.
        loss: Takes the network and a batch, returns a scalar; ``None`` means the network's ``training_step``.

    Raises:
        ConfigurationError: There is no loss to compute.
    """

    def __init__(self, model: nn.Module, loss: LossFunction | None) -> None:
        super().__init__()
        if loss is None:
            _check_training_step(model)
        self.model = copy_module(model).train()
        self._loss = loss
        self._sink = LogSink()
        for child in self.model.modules():
            if isinstance(child, LightningModule):
                # Of this copy only; mypy knows methods as parts of their class.
                child.log = self._sink.log  # type: ignore[method-assign]
                child.log_dict = self._sink.log_dict  # type: ignore[method-assign, assignment]

    def attach(self, trainer: Trainer, log: Callable[..., None]) -> None:
        """Give the network the trainer it may ask for, and its log calls somewhere to go.

        Args:
            trainer: The trainer that runs the outer module.
            log: Called with the arguments of every ``self.log``.
        """
        self._sink.target = log
        if isinstance(self.model, LightningModule):
            self.model.trainer = trainer

    def forward(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch with the weights that are in place.

        Raises:
            ConfigurationError: The user's code returned something else than a loss.
        """
        return self.loss_of(self.model, batch, batch_idx)

    def loss_of(
        self, network: nn.Module, batch: Any, batch_idx: int = 0
    ) -> Tensor:
        """The same for a copy of the network.

        Args:
            network: The network inside, or a copy of it.
            batch: What the data loader gave.
            batch_idx: Its number.

        Raises:
            ConfigurationError: The user's code returned something else than a loss.
        """
        if self._loss is not None:
            output: Any = self._loss(network, batch)
        else:
            step: Any = network.training_step
            output = step(batch, batch_idx)
        value = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = (
                "loss function" if self._loss is not None else "training_step"
            )
            raise ConfigurationError(
                f"the {what} of {type(self.model).__name__} returned {type(output).__name__}; "
                "it must be a scalar tensor (or a dict with 'loss')"
            )
        return value.reshape(())

    def loss_at(
        self, weights: Mapping[str, Tensor], batch: Any, batch_idx: int
    ) -> Tensor:
        """The loss of one batch at other weights; differentiable with respect to them.

        Args:
            weights: Parameters and buffers by name; names left out keep the copy's own tensors.
            batch: What the data loader gave.
            batch_idx: Its number.

        Returns:
            A scalar.
        """
        named = {f"model.{name}": tensor for name, tensor in weights.items()}
        loss: Tensor = functional_call(self, named, (batch, batch_idx))
        return loss


def _check_training_step(model: nn.Module) -> None:
    name = type(model).__name__
    refuse_other_lightning(model)
    if not isinstance(model, LightningModule):
        raise ConfigurationError(
            f"{name} is not a LightningModule and has no training_step: pass loss=f(model, batch)"
        )
    if not model.automatic_optimization:
        raise ConfigurationError(
            f"{name} optimises manually, so its training_step cannot be reused: pass loss=f(model, batch)"
        )
