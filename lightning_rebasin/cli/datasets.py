"""Options and helpers for the data of the commands: batches for statistics, a loader to evaluate on."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli.common import load_object, search_here
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    MissingExtraError,
)

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Data:
    """Batches for the commands that need them.

    Args:
        train: Some training batches, kept in memory; empty if there are none.
        validate: A loader to evaluate on, ``None`` if there is none.
        sources: Where they came from.
        loader: All training batches, for commands that train; ``None`` if there are none.
    """

    train: Sequence[Any] = ()
    validate: Iterable[Any] | None = None
    sources: tuple[str, ...] = ()
    loader: Iterable[Any] | None = None


@dataclass(frozen=True)
class _Chain:
    """Several loaders as one.

    Args:
        loaders: The loaders, one after the other.
    """

    loaders: tuple[Iterable[Any], ...]

    def __iter__(self) -> Iterator[Any]:
        for loader in self.loaders:
            yield from loader


def add_data_arguments(
    parser: argparse.ArgumentParser, *, several: bool = False
) -> None:
    """Declare where the data come from.

    Args:
        parser: The parser of the command.
        several: Whether ``--data`` may be given again, for models that were trained on different data.
    """
    again = (
        "; once per model if they were trained on different data"
        if several
        else ""
    )
    group = parser.add_argument_group(
        "data", "(or the 'data' section of --config)"
    )
    group.add_argument(
        "--data",
        metavar="PKG.NAME",
        action="append" if several else "store",
        help="import path of a LightningDataModule class, or of a function that returns one, a DataLoader, or a pair "
        f"of loaders (train, validation){again}",
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
    given = [args.data] if isinstance(args.data, str) else args.data or []
    if given:
        return _union([_loaded(name, args.batches) for name in given])
    if args.config:
        made = _from_config(args.config)
        if made is not None:
            return _read(made, str(args.config), args.batches)
    return Data()


def _loaded(name: str, batches: int) -> Data:
    """The data behind one import path."""
    return _read(_make(load_object(name), name), name, batches)


def _read(made: Any, name: str, count: int) -> Data:
    """The first training batches, and the validation loader."""
    train, validate = _loaders(made, name)
    batches = list(islice(train, count)) if train is not None else []
    if not batches:
        raise DataError(f"{name} gives no training batch")
    if validate is train and isinstance(train, Iterator):
        # It can be gone through only once, and that was now.
        validate = batches
    return Data(batches, validate, (name,), train)


def _union(parts: Sequence[Data]) -> Data:
    """Batches of all sources in turn, so that none of them comes last."""
    if len(parts) == 1:
        return parts[0]
    mixed = []
    for batches in zip_longest(*(part.train for part in parts)):
        mixed += [batch for batch in batches if batch is not None]
    loaders = tuple(p.validate for p in parts if p.validate is not None)
    sources: tuple[str, ...] = ()
    for part in parts:
        sources += part.sources
    return Data(mixed, _Chain(loaders) if loaders else None, sources)


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
    from lightning_rebasin.symmetry.run.lightning import has_own_method

    if hasattr(made, "train_dataloader"):
        try:
            made.prepare_data()
            made.setup("fit")
            train = made.train_dataloader()
            if has_own_method(made, "val_dataloader"):
                return train, made.val_dataloader()
        except Exception as error:  # the user's own code may raise anything
            raise DataError(
                f"{place}: {type(error).__name__}: {error}"
            ) from error
        print(
            f"warning: {place} has no val_dataloader: networks are evaluated on its training data",
            file=sys.stderr,
        )
        return train, train
    if (
        isinstance(made, tuple)
        and len(made) == 2
        and all(isinstance(part, Iterable) for part in made)
    ):
        return made
    if not isinstance(made, Iterable):
        raise DataError(f"{place} gives a {type(made).__name__}, not batches")
    return made, made
