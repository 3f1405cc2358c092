"""Trainings of ``landscape curve`` and ``landscape star`` that an interruption does not undo.

After every epoch the training is kept in ``training.ckpt`` in the folder of the results, whole or not at all.
``--resume`` goes on from there, and the file goes away when the results are written.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.files import atomic_path

NAME = "training.ckpt"
#: Options that must be the same when a training goes on: with others it would be another curve.
_SAME = ("files", "module", "curve", "bends", "match", "seed", "lr")
_KEY = "lightning_rebasin_command"


class KeepTraining(Callback):
    """Writes the training after every epoch.

    Args:
        path: Where.
        args: Options of the command, which are written too.
    """

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        self._path = path
        self._options = _options(args)

    @override
    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Say what was trained."""
        checkpoint[_KEY] = self._options

    @override
    def on_train_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Write."""
        with atomic_path(self._path) as temporary:
            trainer.save_checkpoint(temporary)


def kept_training(folder: Path, args: argparse.Namespace) -> Path | None:
    """The training to go on with, ``None`` without ``--resume``.

    Args:
        folder: Of the results.
        args: Options of the command.

    Raises:
        ConfigurationError: There is none, or it was begun with other options.
    """
    if not args.resume:
        return None
    path = folder / NAME
    if not path.exists():
        raise ConfigurationError(
            f"--resume: there is no {path}; leave the option away to begin anew"
        )
    before = _written(path)
    now = _options(args)
    for name, value in now.items():
        if before.get(name) != value:
            raise ConfigurationError(
                f"--resume: {path} was begun with {name} {before.get(name)}, not {value}; give the same options"
            )
    return path


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Turn what Lightning makes of Ctrl-C back into a ``KeyboardInterrupt``.

    Lightning 2.x catches the interrupt in ``fit``, ignores further ones for good, and leaves the process with status 1;
    the command line has its own last word and status.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from error


def _written(path: Path) -> Mapping[str, Any]:
    """The options in the file of a training.

    Raises:
        ConfigurationError: It cannot be read, or no command wrote it.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        found = content[_KEY]
    # A damaged file makes torch.load raise almost anything.
    except Exception as error:
        raise ConfigurationError(
            f"--resume: {path} is not a training of this command ({error}); delete it to begin anew"
        ) from error
    assert isinstance(found, Mapping)
    return found


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What has to stay the same, in words that a checkpoint can hold."""
    given = vars(args)
    return {name: _plain(given[name]) for name in _SAME if name in given}


def _plain(value: Any) -> Any:
    """Paths as text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
