"""What the commands measure a network by: the metrics that it logs, or those of a classifier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

from lightning_rebasin.cli.datasets import Data
from lightning_rebasin.errors import DataError, RebasinError

if TYPE_CHECKING:
    from torch import nn


def held_out_loss(
    module: nn.Module | None, data: Data
) -> Callable[[nn.Module, Any], float] | None:
    """Mean loss of a network on one training batch, where the labels are there to tell.

    It is the first loss that ``validation_step`` logs, or the cross-entropy of a classifier; ``None`` if neither is
    known to work on the batches.
    """
    if module is None or not data.train:
        return None
    from lightning.pytorch import LightningModule

    if not isinstance(module, LightningModule):
        if not _is_classification(data.train):
            return None
        return _cross_entropy
    logged_loss = _LoggedLoss(module)
    try:
        first = logged_loss(module, data.train[0])
    except Exception:  # noqa: BLE001 - the user's step may not take training batches, and raise anything
        return None
    return None if math.isnan(first) else logged_loss


def _cross_entropy(network: nn.Module, batch: Any) -> float:
    like = next(iter(network.parameters()))
    inputs = batch[0].to(like.device, like.dtype)
    labels = batch[1].to(like.device)
    loss = cross_entropy(network, (inputs, labels))["loss"]
    return float(loss.detach())


@final
class _LoggedLoss:
    """The first loss that ``validation_step`` logs on a batch, without a trainer; NaN if it logs none.

    Args:
        module: The architecture.
    """

    def __init__(self, module: nn.Module) -> None:
        from lightning_rebasin.merging.statistics import copied
        from lightning_rebasin.symmetry.run.lightning import silence

        self._copy = copied(module)
        self._logged = silence(self._copy, module)

    def __call__(self, network: nn.Module, batch: Any) -> float:
        """The loss of a network of that architecture."""
        import torch
        from torch.utils._pytree import tree_map

        from lightning_rebasin.merging.statistics import moved_to
        from lightning_rebasin.symmetry.run.examples import Example
        from lightning_rebasin.symmetry.run.lightning import call

        copy = self._copy
        # The network's own tensors, so that there is no second set of weights.
        copy.load_state_dict(network.state_dict(), assign=True)
        placed = tree_map(lambda leaf: moved_to(copy, leaf), batch)
        with torch.no_grad(), warnings.catch_warnings():
            # A few held-out samples hold too few classes for some metrics, which say so every time.
            warnings.simplefilter("ignore")
            call(
                copy,
                Example((placed,), method="validation_step"),
                self._logged,
            )
        for name, value in self._logged.items():
            if "loss" in name.lower():
                return float(value)
        return math.nan


def evaluator(
    module: nn.Module | None, data: Data
) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """Metrics of a network: what its ``validation_step`` logs, or accuracy and cross-entropy of a classifier.

    Returns ``None`` if there is nothing to evaluate on, or no known way to.

    Raises:
        DataError: The validation loader gives no batch, or gives its batches only once.
    """
    if module is None or data.validate is None:
        return None
    check_loader(data.validate)
    from lightning.pytorch import LightningModule

    loader = data.validate
    if isinstance(module, LightningModule):
        return lambda network: _validated(network, loader)
    return (
        (lambda network: _classified(network, loader))
        if _is_classification(loader)
        else None
    )


def check_loader(loader: Iterable[Any]) -> None:
    """Raise early unless networks can be evaluated on a loader, one after the other.

    Raises:
        DataError: It gives no batch, or gives its batches only once.
    """
    if isinstance(loader, Iterator):
        raise DataError(
            "the validation data can be gone through only once, but several networks are evaluated on them: give a "
            "DataLoader or a list of batches"
        )
    if next(iter(loader), None) is None:
        raise DataError("the validation data have no batch to evaluate on")


def check_fits(
    module: nn.Module,
    loader: Iterable[Any],
    loss: Any,
    metric: str | None = None,
) -> None:
    """Raise early if the network does not run on the first validation batch, or does not give what is asked for.

    Args:
        module: The network.
        loader: Validation batches.
        loss: Measures a module that is not a LightningModule; ``None`` means its ``validation_step``.
        metric: The value of ``--metric``.

    Raises:
        DataError: The user's own code fails on this batch, because the data are those of another network, say; or it
            gives no such metric: the message lists what it gives.
        RebasinError: The network cannot be measured at all.
    """
    from lightning_rebasin.landscape import measure_barrier

    state = module.state_dict()
    first = [next(iter(loader))]
    try:
        curve = measure_barrier(
            module, state, state, first, points=3, loss=loss
        )
    except RebasinError:
        raise
    # A network and its steps may raise anything.
    except Exception as error:
        raise DataError(
            f"{type(module).__name__} does not run on a validation batch ({type(error).__name__}: {error}): "
            "do --module and --data belong together?"
        ) from error
    if metric is not None:
        curve.midpoint(metric)


def loss_of(module: nn.Module) -> Any:
    """What measures a network: nothing for a LightningModule, which has steps of its own.

    What other modules compute is taken for class scores.
    """
    from lightning.pytorch import LightningModule

    return None if isinstance(module, LightningModule) else cross_entropy


def cross_entropy(module: nn.Module, batch: Any) -> Any:
    """Loss of a classifier on ``(inputs, labels)``, and its accuracy."""
    from torch.nn import functional

    inputs, labels = batch[0], batch[1]
    logits = module(inputs)
    return {
        "loss": functional.cross_entropy(logits, labels),
        "accuracy": (logits.argmax(1) == labels).double().mean(),
    }


def _validated(module: Any, loader: Iterable[Any]) -> dict[str, float]:
    """``trainer.validate``, without its output."""
    import logging

    from lightning.pytorch import Trainer

    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                accelerator="auto",
                devices=1,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            results = trainer.validate(module, loader, verbose=False)
    finally:
        logger.setLevel(level)
    return {
        name: float(value) for row in results for name, value in row.items()
    }


def _classified(module: nn.Module, loader: Iterable[Any]) -> dict[str, float]:
    import torch

    like = next(iter(module.parameters()))
    sums: dict[str, float] = {}
    count = 0
    with torch.no_grad():
        for inputs, labels, *_ in loader:
            values = cross_entropy(
                module,
                (inputs.to(like.device, like.dtype), labels.to(like.device)),
            )
            count += len(labels)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(labels)
    return {name: total / count for name, total in sums.items()}


def _is_classification(loader: Iterable[Any]) -> bool:
    import torch

    batch = next(iter(loader), None)
    return (
        isinstance(batch, tuple | list)
        and len(batch) >= 2
        and isinstance(batch[1], torch.Tensor)
        and batch[1].ndim == 1
        and not batch[1].is_floating_point()
    )
