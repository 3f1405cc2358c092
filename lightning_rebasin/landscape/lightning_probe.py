"""Evaluating other weights of a LightningModule with its own ``validation_step``.

Whatever the step logs is recorded instead of reaching the trainer, per point, with one copy of every torchmetrics
metric per point.  So every key that ``validation_step`` logs has a barrier without any change to the module.  Every
workaround for Lightning's machinery that needs Lightning itself lives in this file, next to its cause; the stand-ins
that need only Python are in ``symmetry/run/lightning.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import (
    is_param_in_hook_signature,
)
from torch import nn
from torchmetrics import Metric

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.accumulate import Average, reduction_name
from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.landscape.copies import copy_module
from lightning_rebasin.landscape.metric_slots import MetricSlots
from lightning_rebasin.landscape.other_lightning import refuse_other_lightning
from lightning_rebasin.landscape.probe import (
    FunctionProbe,
    LossFunction,
    Place,
    Probe,
)
from lightning_rebasin.symmetry.run.copy import uncompiled
from lightning_rebasin.symmetry.run.lightning import replace_methods

_LOG_SIGNATURE = inspect.signature(LightningModule.log)


class LightningProbe(Probe):
    """Evaluates a LightningModule with its own ``validation_step`` and records what the step logs."""

    def __init__(self, module: LightningModule, points: int) -> None:
        if is_param_in_hook_signature(
            module.validation_step, "dataloader_iter", explicit=True
        ):
            raise ConfigurationError(
                "validation_step(dataloader_iter) consumes its batches, so they cannot be evaluated again at other "
                "weights; use validation_step(batch, batch_idx)"
            )
        super().__init__(module, points)
        self._current: tuple[int, Any, Place] = (0, None, Place())
        self._logged: list[dict[str, Metric]] = [{} for _ in range(points)]
        self._direction: dict[str, bool] = {}
        self._slots = MetricSlots(self.module, points)
        for child in self.module.modules():
            if isinstance(child, LightningModule):
                _redirect(child, self._record)
        lend_trainer(cast(LightningModule, self.module), module)

    def step(self, point: int, batch: Any, place: Place) -> None:
        """Run ``validation_step`` on one batch."""
        self._current = (point, batch, place)
        self._slots.install(point)
        step = cast(LightningModule, self.module).validation_step
        # Lightning passes dataloader_idx only when there are several loaders, and batch_idx only to steps that take it.
        arguments = []
        if is_param_in_hook_signature(step, "batch_idx", min_args=2):
            arguments.append(place.batch_idx)
        if place.loaders > 1:
            arguments.append(place.dataloader_idx)
        step(batch, *arguments)
        self._current = (0, None, Place())

    def reset_metrics(self) -> None:
        """Forget what batch-norm re-estimation did to the metrics."""
        self._slots.reset()
        self._logged = [{} for _ in self._logged]

    def results(
        self, gather: Callable[[object], list[Any]] | None = None
    ) -> list[dict[str, float]]:
        """The reduced metrics of every point; torchmetrics synchronise themselves over processes."""
        rows = super().results(gather)
        for row, metrics in zip(rows, self._logged, strict=True):
            # Sorted: with several processes each compute() is collective, so the order must be the same everywhere.
            for name in sorted(metrics):
                row[name] = float(metrics[name].compute())
        return rows

    def transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Move a batch as a Trainer does."""
        module = cast(LightningModule, self.module)
        return move_batch(module, batch, self.device, dataloader_idx)

    def higher_is_better(self) -> dict[str, bool]:
        """What the logged torchmetrics say."""
        return self._direction

    def _record(
        self,
        name: str,
        value: Any,
        *_: object,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        add_dataloader_idx: bool = True,
        **options: Any,
    ) -> None:
        """Stand in for ``LightningModule.log``."""
        point, batch, place = self._current
        key = place.key(name) if add_dataloader_idx else name
        if isinstance(value, Metric):
            self._logged[point][key] = value
            if value.higher_is_better is not None:
                self._direction[key] = bool(value.higher_is_better)
            return
        reduction = reduction_name(reduce_fx)
        weight = 1
        if reduction == "mean":
            weight = options.get("batch_size") or batch_size(batch)
        averages = self._averages[point]
        averages.setdefault(key, Average(reduction)).update(value, weight)


def make_probe(
    module: nn.Module, points: int, loss: LossFunction | None = None
) -> Probe:
    """The probe for a module: a LightningModule measures itself unless ``loss`` is given.

    Raises:
        ConfigurationError: There is nothing to measure with, or the module cannot be copied.
    """
    check_measurable(module, loss)
    if loss is not None:
        return FunctionProbe(module, points, loss)
    return LightningProbe(cast(LightningModule, uncompiled(module)), points)


def check_measurable(module: nn.Module, loss: LossFunction | None) -> None:
    """Refuse a module of which nothing says how good it is.

    Raises:
        ConfigurationError: There is neither ``loss`` nor a ``validation_step``, or it is one of another Lightning.
    """
    inner = uncompiled(module)
    if loss is None:
        refuse_other_lightning(inner)
    measures_itself = isinstance(inner, LightningModule) and is_overridden(
        "validation_step", inner
    )
    if loss is None and not measures_itself:
        raise ConfigurationError(
            f"{type(inner).__name__} has no validation_step of its own; pass loss=, a function loss(module, batch) "
            "that returns the mean loss of the batch or a dict of such means"
        )


def move_batch(
    module: LightningModule,
    batch: Any,
    device: torch.device,
    dataloader_idx: int = 0,
) -> Any:
    """Move a batch with the module's own transfer hooks, in the order in which a Trainer calls them."""
    batch = module.on_before_batch_transfer(batch, dataloader_idx)
    batch = module.transfer_batch_to_device(batch, device, dataloader_idx)
    return module.on_after_batch_transfer(batch, dataloader_idx)


def copy_with_trainer(module: LightningModule) -> LightningModule:
    """A copy for evaluation whose steps may still ask for the trainer."""
    clone = cast(LightningModule, copy_module(module))
    lend_trainer(clone, module)
    return clone


def lend_trainer(clone: LightningModule, module: LightningModule) -> None:
    """Let a copy read the trainer of the original."""
    # LightningModule.__getstate__ drops it from copies, but steps may read it (epoch, global step, datamodule).
    trainer = getattr(module, "_trainer", None)
    if trainer is not None:
        clone.trainer = trainer


def _redirect(module: LightningModule, record: Callable[..., None]) -> None:
    """Send what a copy logs, prints and plots to ``record`` or nowhere; the user's logger must not see it."""
    silent = DummyLogger()

    def log(_self: object, *args: Any, **kwargs: Any) -> None:
        _bound(record, args, kwargs)

    def quiet(_self: object, *_args: Any, **_kwargs: Any) -> None:
        """Print nothing."""

    # Modules that learn paths have redirected their network's own already, on the instance.
    for name in ("log", "log_dict"):
        vars(module).pop(name, None)
    # log_dict stays: it calls log for every entry.
    replace_methods(
        module,
        {
            "log": log,
            "print": quiet,
            "logger": property(lambda _self: silent),
            "loggers": property(lambda _self: [silent]),
        },
    )


def _bound(
    record: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Call ``record`` with every argument of ``LightningModule.log`` by name."""
    arguments = dict(_LOG_SIGNATURE.bind(None, *args, **kwargs).arguments)
    arguments.pop("self")
    record(arguments.pop("name"), arguments.pop("value"), **arguments)
