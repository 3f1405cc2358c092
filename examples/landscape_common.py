"""What the studies of the landscape share: networks with Lightning's steps, images in memory, quiet trainers, files.

The images are those of the shared data beside the repository (or wherever REBASIN_SHARED points).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

# The studies take these from here: they cannot import them before the path above is set.
from helpers.data import cifar10, mnist, normalise
from helpers.models import LeNet, ResNet20, load_weights
from helpers.shared import shared_path

from lightning_rebasin.files import atomic_path, atomic_write_text
from lightning_rebasin.landscape import BarrierCurve, PathCurve

__all__ = ["LeNet", "ResNet20", "cifar10", "load_weights", "shared_path"]
#: Where results are kept, and where trained networks wait for the next run (not part of the results).
RESULTS = Path(__file__).resolve().parent / "results"
WORK = Path(tempfile.gettempdir()) / "lightning_rebasin_landscape"
State = dict[str, Tensor]
#: Seconds of the processor after which nothing new begins.
_BUDGET = {"seconds": float("inf")}
#: Makes an optimizer from parameters, as ``functools.partial(torch.optim.SGD, lr=0.1)`` does.
MakeOptimizer = Callable[..., torch.optim.Optimizer]

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.simplefilter("ignore")


class Classifier(LightningModule):
    """Cross-entropy and accuracy around any network.

    Args:
        network: Maps images to logits.
        optimizer: Makes the optimizer; Adam 0.001 if omitted.
        schedule: Makes a scheduler that is stepped after every batch, from the optimizer and the number of steps.
        augment: Changes the images of training batches.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer | None = None,
        schedule: Callable[[Any, int], Any] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._optimizer = optimizer or partial(torch.optim.Adam, lr=1e-3)
        self._schedule = schedule
        self._augment = augment

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        """Cross-entropy of one batch."""
        x, y = batch
        if self._augment is not None:
            x = self._augment(x)
        return cross_entropy(self(x), y)

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """Loss and accuracy of one batch."""
        x, y = batch
        logits = self(x)
        self.log("loss", cross_entropy(logits, y))
        self.log("accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        """The optimizer, with its schedule if there is one."""
        optimizer = self._optimizer(self.parameters())
        if self._schedule is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self._schedule(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def cosine(optimizer: Any, steps: int) -> Any:
    """From the full learning rate down to 0."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def flip_and_crop(images: Tensor) -> Tensor:
    """The usual augmentation of CIFAR-10: a random flip, and a shift by up to 4 pixels, one for the whole batch."""
    if torch.rand(()) < 0.5:
        images = images.flip(-1)
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    row, column = (int(torch.randint(9, ())) for _ in range(2))
    return padded[..., row : row + 32, column : column + 32]


def loader(
    images: Tensor, labels: Tensor, batch_size: int, *, shuffle: bool = False
) -> DataLoader[Any]:
    """Batches of images in memory."""
    return DataLoader(
        TensorDataset(images, labels), batch_size=batch_size, shuffle=shuffle
    )


def mnist_images(
    split: str, count: int | None = None, *, flat: bool
) -> tuple[Tensor, Tensor]:
    """Normalised images and their labels."""
    images, labels = mnist(split)
    images = normalise(images[:count], "mnist-mlp")
    return (images.flatten(1) if flat else images), labels[:count]


def fit(
    module: LightningModule,
    train: DataLoader[Any],
    start: str | None = None,
    **options: Any,
) -> None:
    """Train without a word.

    Args:
        module: What is trained.
        train: Training batches.
        start: A checkpoint to go on from.
        **options: Of the trainer.
    """
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, train, ckpt_path=start)


def kept(name: str, make: Callable[[], State]) -> State:
    """Weights from the last run, or made now."""
    path = WORK / f"{name}.pt"
    if not path.exists():
        check_budget()
        state = make()
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    found: State = torch.load(path, weights_only=True)
    return found


def kept_curve(name: str, measure: Callable[[], BarrierCurve]) -> Any:
    """A curve from the last run, or measured now."""
    path = WORK / f"{name}.json"
    if not path.exists():
        check_budget()
        measure().to_json(path)
    data = json.loads(path.read_text())
    return (PathCurve if "lengths" in data else BarrierCurve).from_dict(data)


def begin() -> None:
    """Read ``--seconds`` from the command line, and make the folder for what is kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="begin nothing new after so many seconds of the processor; the next run goes on (exit code 75)",
    )
    _BUDGET["seconds"] = parser.parse_args().seconds
    WORK.mkdir(exist_ok=True)


def check_budget() -> None:
    """Stop the program if it has run long enough."""
    if time.process_time() > _BUDGET["seconds"]:
        print("to be continued: run again")
        sys.exit(75)


def add_rows(path: Path, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Add entries to a JSON file of results; others in it stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    everything = {**before, **rows}
    atomic_write_text(path, json.dumps(everything, indent=1) + "\n")
    return everything
