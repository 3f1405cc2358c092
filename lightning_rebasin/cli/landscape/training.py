"""What ``landscape curve`` and ``landscape star`` share: the training, its options, the learned checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli import metrics
from lightning_rebasin.cli.landscape.job import Job
from lightning_rebasin.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn


def add_training_arguments(
    parser: argparse.ArgumentParser, *, lr: float
) -> None:
    """Declare how long and how fast to train.

    Args:
        parser: The parser of the command.
        lr: The default learning rate.
    """
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=int,
        default=10,
        help="epochs over the training data (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        type=float,
        default=lr,
        help="learning rate, which falls to 0 like a cosine (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with a training that was interrupted: training.ckpt in OUT, written after every epoch",
    )


def training_loss(job: Job) -> Callable[[nn.Module, Any], Tensor] | None:
    """The loss of a module that has no ``training_step``; ``None`` if it has one."""
    if job.loss is None:
        return None

    def loss(network: nn.Module, batch: Any) -> Tensor:
        value: Tensor = metrics.cross_entropy(network, batch)["loss"]
        return value

    return loss


def schedule(epochs: int) -> Callable[[Any], Any]:
    """Makes the schedule of the learning rate."""
    from torch.optim.lr_scheduler import CosineAnnealingLR

    return partial(CosineAnnealingLR, T_max=epochs)


def fit(module: Any, job: Job, args: argparse.Namespace) -> None:
    """Train a path on the training data; after every epoch the training is kept in the folder of the results.

    Raises:
        ConfigurationError: The number of epochs cannot work, or there is nothing to resume.
        DataError: There is no training loader.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import TQDMProgressBar

    from lightning_rebasin.cli.landscape.job import make_folder
    from lightning_rebasin.cli.landscape.resume import (
        NAME,
        KeepTraining,
        interruptible,
        kept_training,
    )
    from lightning_rebasin.landscape.forked_runs import seeded
    from lightning_rebasin.landscape.quiet import quiet_lightning

    if args.epochs < 1:
        raise ConfigurationError(
            f"--epochs must be at least 1, got {args.epochs}"
        )
    if job.data.loader is None:
        raise DataError("there is no training data: --data gives none")
    start = kept_training(args.output, args)
    keep = KeepTraining(make_folder(args.output) / NAME, args)
    bars = [TQDMProgressBar(leave=True)] if job.progress else []
    with quiet_lightning(), seeded([args.seed], job.data.loader):
        trainer = Trainer(
            max_epochs=args.epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=job.progress,
            callbacks=[keep, *bars],
        )
        with interruptible(trainer):
            trainer.fit(module, job.data.loader, ckpt_path=start)
    # Measuring goes on where the files and the batches are.
    module.cpu()


def forget_training(folder: Path) -> None:
    """Remove what ``--resume`` would go on with, once the results are written."""
    from lightning_rebasin.cli.landscape.resume import NAME

    (folder / NAME).unlink(missing_ok=True)


def write_learned(
    path: Path, state: Mapping[str, Tensor], job: Job, how: Mapping[str, Any]
) -> None:
    """Write learned weights as a checkpoint like the first file's, so that it loads as the user's own module.

    Args:
        path: The file; whether it may be overwritten was checked for its folder.
        state: The weights.
        job: What was worked on.
        how: How they were made.
    """
    from lightning_rebasin.checkpoints.write import write_checkpoint

    inputs = [file.path.name for file in job.files]
    write_checkpoint(
        path,
        state,
        like=job.files[0],
        provenance={"inputs": inputs, **how},
        force=True,
    )
