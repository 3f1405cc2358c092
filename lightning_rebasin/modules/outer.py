"""A LightningModule around the user's network that trains other tensors than the network's own.

What ``MergeModule``, ``CurveModule`` and ``StarModule`` share: the network inside (``inner``) computes losses at given
weights, so it is neither optimised nor saved; the optimizer holds the tensors that are learned instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import (
    LRSchedulerCallable,
    OptimizerCallable,
    ReduceLROnPlateau,
)
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.inner import InnerModel, LossFunction

_HALF = (torch.float16, torch.bfloat16)


class OuterModule(LightningModule):
    """Holds the network, makes the optimizer of what is learned, keeps the network out of checkpoints.

    Args:
        model: The network; it is copied, not changed.
        loss: Takes the network and a batch and returns a scalar; ``None`` means ``model.training_step``.
        optimizer: Makes the optimizer of the learned tensors; ``None`` is the subclass's default.
        lr_scheduler: Makes a learning-rate scheduler from the optimizer.

    Raises:
        ConfigurationError: There is no loss to compute, or the optimizer is one already.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction | None,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__()
        self.use_optimizer(optimizer, lr_scheduler)
        self.inner = InnerModel(model, loss)

    def use_optimizer(
        self,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        """Take the factories of the optimizer and of its scheduler.

        Raises:
            ConfigurationError: The optimizer is one already.
        """
        if isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigurationError(
                "this optimizer holds the parameters of another network: pass a callable that makes one, such as "
                "functools.partial(torch.optim.SGD, lr=0.1)"
            )
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

    def learned(self) -> list[nn.Parameter]:
        """The parameters that the optimizer moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def default_optimizer(
        self, parameters: list[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """SGD, lr 0.01, momentum 0.9."""
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    def default_scheduler(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002
    ) -> LRScheduler | None:
        """What changes the step size of the default optimizer after every step: nothing."""
        return None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and scheduler that were asked for, over what is learned.

        Raises:
            ConfigurationError: The optimizer holds other parameters.
        """
        make = self._optimizer or self.default_optimizer
        optimizer = make(self.learned())
        _check_held(optimizer, self.learned())
        if self._lr_scheduler is None:
            return self._by_default(optimizer)
        scheduler = self._lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {
                    "scheduler": scheduler,
                    "monitor": scheduler.monitor,
                },
            }
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler},
        }

    def _by_default(
        self, optimizer: torch.optim.Optimizer
    ) -> OptimizerLRScheduler:
        """An optimizer that nobody gave a scheduler; one that somebody gave keeps its step size."""
        if self._optimizer is not None:
            return optimizer
        scheduler = self.default_scheduler(optimizer)
        if scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # PyTorch declares three overloads, of which one is enough here.
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is learned only: the network inside holds no weights of its own."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith("inner.")
        }

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        assign: bool = False,
    ) -> Any:
        """Inverse of :meth:`state_dict`."""
        inner = {
            f"inner.{name}": tensor
            for name, tensor in self.inner.state_dict().items()
        }
        return super().load_state_dict({**inner, **state_dict}, strict, assign)

    def check_precision(self) -> None:
        """Refuse to learn in half precision.

        Raises:
            ConfigurationError: The trainer made the learned tensors half as long.
        """
        if any(parameter.dtype in _HALF for parameter in self.learned()):
            raise ConfigurationError(
                "the free parameters would lose their small steps in half precision: use precision='bf16-mixed' or "
                "'16-mixed' instead of 'bf16-true' or '16-true'"
            )

    def mean_over_processes(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        reduced = self.trainer.strategy.reduce(value.clone(), reduce_op="mean")
        return torch.as_tensor(reduced)

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.trainer.world_size == 1:
            return value
        # In ``setup`` the module itself is still on the CPU, from which not every backend can send.
        device = self.trainer.strategy.root_device
        summed = self.trainer.strategy.reduce(
            value.to(device), reduce_op="sum"
        )
        return torch.as_tensor(summed).to(value.device)


def _check_held(
    optimizer: torch.optim.Optimizer, learned: list[nn.Parameter]
) -> None:
    """Refuse an optimizer over the network's own parameters, which would learn nothing and say nothing."""
    known = {id(parameter) for parameter in learned}
    for group in optimizer.param_groups:
        if any(id(parameter) not in known for parameter in group["params"]):
            raise ConfigurationError(
                "the optimizer holds parameters that are not learned here: it must be made from the parameters that "
                "the callable is given, as functools.partial(torch.optim.SGD, lr=0.1) does"
            )
