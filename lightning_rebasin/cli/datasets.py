"""Options and helpers for the data of the commands: batches for statistics, a loader to evaluate on."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli.common import load_object, search_here
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    MissingExtraError,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Data:
    """Batches for the commands that need them.

    Args:
        train: Some training batches, kept in memory; empty if there are none.
        validate: A loader to evaluate on, ``None`` if there is none.
    """

    train: Sequence[Any] = ()
    validate: Iterable[Any] | None = None


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the data come from."""
    group = parser.add_argument_group(
        "data", "(or the 'data' section of --config)"
    )
    group.add_argument(
        "--data",
        metavar="PKG.NAME",
        help="import path of a LightningDataModule class, or of a function that returns one, a DataLoader, or a pair "
        "of loaders (train, validation)",
    )
    group.add_argument(
        "--batches",
        type=int,
        default=20,
        metavar="N",
        help="training batches used for activations and statistics (default: %(default)s)",
    )


def load_data(args: argparse.Namespace) -> Data:
    """The data of ``--data`` or of the config.

    Raises:
        ConfigurationError: It cannot be imported or made.
        DataError: It has no batches.
    """
    if args.batches < 1:
        raise ConfigurationError(
            f"--batches must be at least 1, got {args.batches}"
        )
    if args.data:
        place = load_object(args.data)
        made = _make(place, args.data)
    elif args.config and (made := _from_config(args.config)) is not None:
        pass
    else:
        return Data()
    train, validate = _loaders(made, args.data or str(args.config))
    batches = list(islice(train, args.batches)) if train is not None else []
    if not batches:
        raise DataError(f"{args.data or args.config} gives no training batch")
    return Data(batches, validate)


def evaluator(
    module: nn.Module | None, data: Data
) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """Metrics of a network: what its ``validation_step`` logs, or accuracy and cross-entropy of a classifier.

    Returns ``None`` if there is nothing to evaluate on, or no known way to.
    """
    if module is None or data.validate is None:
        return None
    from lightning.pytorch import LightningModule

    loader = data.validate
    if isinstance(module, LightningModule):
        return lambda network: _validated(network, loader)
    return (
        (lambda network: _classified(network, loader))
        if _is_classification(loader)
        else None
    )


def cross_entropy(module: nn.Module, batch: Any) -> Any:
    """Loss of a classifier on ``(inputs, labels)``, and its accuracy."""
    from torch.nn import functional

    inputs, labels = batch[0], batch[1]
    logits = module(inputs)
    return {
        "loss": functional.cross_entropy(logits, labels),
        "accuracy": (logits.argmax(1) == labels).double().mean(),
    }


def _make(place: Any, name: str) -> Any:
    if not callable(place):
        return place
    try:
        return place()
    except Exception as error:  # the user's own code may raise anything
        raise ConfigurationError(
            f"--data {name}() failed: {type(error).__name__}: {error} (it is called without arguments; a config can "
            "give some)"
        ) from error


def _from_config(path: Path) -> Any:
    """Make the data module that a LightningCLI config describes; ``None`` if it describes none."""
    try:
        import yaml
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise MissingExtraError(
            "--config needs: pip install 'lightning-rebasin[cli]'"
        ) from error
    from lightning.pytorch import LightningDataModule

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"cannot read the config {path}: {' '.join(str(error).split())}"
        ) from error
    config = config.get("fit", config) if isinstance(config, dict) else {}
    described = config.get("data")
    if described is None:
        return None
    if not isinstance(described, dict) or "class_path" not in described:
        raise ConfigurationError(
            f"the 'data' section of {path} has no class_path: add it, or give --data"
        )
    search_here()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        with warnings.catch_warnings():  # jsonargparse announces changes that do not touch what is used here
            warnings.simplefilter("ignore")
            return parser.instantiate_classes(
                parser.parse_object({"data": described})
            )["data"]
    except (
        Exception
    ) as error:  # parsing errors, and whatever the user's own __init__ raises
        raise ConfigurationError(
            f"the 'data' section of {path}: {' '.join(str(error).split())[:500]}"
        ) from error


def _loaders(
    made: Any, place: str
) -> tuple[Iterable[Any] | None, Iterable[Any] | None]:
    """Training and validation batches of whatever the user gave."""
    if hasattr(made, "train_dataloader"):
        try:
            made.prepare_data()
            made.setup("fit")
            return made.train_dataloader(), made.val_dataloader()
        except Exception as error:  # the user's own code may raise anything
            raise DataError(
                f"{place}: {type(error).__name__}: {error}"
            ) from error
    if (
        isinstance(made, tuple)
        and len(made) == 2
        and all(isinstance(part, Iterable) for part in made)
    ):
        return made
    if not isinstance(made, Iterable):
        raise DataError(f"{place} gives a {type(made).__name__}, not batches")
    return made, made


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
