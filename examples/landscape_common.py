"""What the studies of the landscape share: networks with Lightning's steps, images in memory, quiet trainers, files.

The images are those of the shared data beside the repository (or wherever REBASIN_SHARED points).
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

__all__ = ["LeNet", "ResNet20", "cifar10", "load_weights", "shared_path"]
#: Where results are kept, and where trained networks wait for the next run (not part of the results).
RESULTS = Path(__file__).resolve().parent / "results"
WORK = Path(tempfile.gettempdir()) / "lightning_rebasin_landscape"
State = dict[str, Tensor]
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
    module: LightningModule, train: DataLoader[Any], **options: Any
) -> float:
    """Train without a word; returns the seconds it took."""
    begin = time.perf_counter()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, train)
    return time.perf_counter() - begin


def kept(name: str, make: Callable[[], State]) -> State:
    """Weights from the last run, or made now."""
    WORK.mkdir(exist_ok=True)
    path = WORK / f"{name}.pt"
    if not path.exists():
        state = make()
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    found: State = torch.load(path, weights_only=True)
    return found


def add_rows(path: Path, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Add entries to a JSON file of results; others in it stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    everything = {**before, **rows}
    atomic_write_text(path, json.dumps(everything, indent=1) + "\n")
    return everything


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall and the processor seconds of a block to a table."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds[f"{name}, wall"] = round(time.perf_counter() - wall, 1)
    seconds[f"{name}, processor"] = round(time.process_time() - cpu, 1)
