"""Every check and reproduction that needs a GPU, in one command.

    python examples/gpu_study.py --data-dir path/to/data --out gpu-results

``--data-dir`` holds ``cifar10/`` as described in ``read_cifar10``.  In order:

1. the tests marked ``cuda``: MergeModule and matching on the device, fp32 and bf16-mixed;
2. time per step of the straight-through estimator and the share of the projection, ResNet20 ×4, fp32 and bf16-mixed;
3. ResNet20 ×4 and VGG11, both with batch norm, trained twice on CIFAR-10, merged naively, by weight matching and by
   the straight-through estimator, each with batch-norm statistics re-estimated; a table in ``OUT/cifar10.json``.

This script was written on a machine without a GPU and has been run there only with ``--smoke`` (tiny networks, few
steps, any accelerator), which checks that it works, not what it finds.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import lzma
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import (
    Callback,
    LightningModule,
    Trainer,
    seed_everything,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from lightning_rebasin import (
    MergeModule,
    Permutation,
    infer_spec,
    interpolate,
    match_weights,
    reset_batch_norm,
)

ROOT = Path(__file__).resolve().parents[1]
STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm and a projected shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False),
                nn.BatchNorm2d(after),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet20(width: int, depth: int = 3) -> nn.Module:
    """CIFAR ResNet-(6·depth + 2) of ``width`` times the usual 16, 32, 64 channels."""
    channels = [16 * width, 32 * width, 64 * width]
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels[0]),
        nn.ReLU(),
    ]
    before = channels[0]
    for stage, after in enumerate(channels):
        for block in range(depth):
            layers.append(
                Block(before, after, 2 if stage and not block else 1)
            )
            before = after
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)
    )


def vgg11(width: float) -> nn.Module:
    """VGG11 with batch norm and one linear layer."""
    layers: list[nn.Module] = []
    before = 3
    for channels in (
        64,
        "pool",
        128,
        "pool",
        256,
        256,
        "pool",
        512,
        512,
        "pool",
        512,
        512,
        "pool",
    ):
        if channels == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        after = max(4, int(channels * width))
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
        before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, 10))


class Classifier(LightningModule):
    """SGD with momentum, one-cycle schedule, random crops and flips on the device.

    Args:
        network: Maps images to logits.
        steps: Optimizer steps of the whole training.
    """

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.example_input_array = torch.rand(4, 3, 32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        """Cross-entropy of augmented images."""
        return functional.cross_entropy(self(augmented(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        """The usual recipe for CIFAR-10."""
        optimizer = torch.optim.SGD(
            self.parameters(),
            0.1,
            momentum=0.9,
            weight_decay=5e-4,
            nesterov=True,
        )
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.4, self.steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def augmented(images: Tensor) -> Tensor:
    """One random shift of up to four pixels and a coin's flip for the whole batch: cheap, and enough here."""
    dx, dy = torch.randint(0, 9, (2,)).tolist()
    shifted = functional.pad(images, (4, 4, 4, 4))[
        :, :, dy : dy + 32, dx : dx + 32
    ]
    return shifted.flip(3) if torch.rand(()) < 0.5 else shifted


def read_cifar10(folder: Path, split: str) -> TensorDataset:
    """CIFAR-10 from contact sheets of 500 images and ``index.csv.xz``; normalised float images ``(N, 3, 32, 32)``."""
    from PIL import Image

    images = []
    for sheet in sorted(
        (
            folder / {"train": "train-jpeg95", "test": "test-lossless"}[split]
        ).iterdir()
    ):
        pixels = np.asarray(Image.open(sheet).convert("RGB"))
        if pixels.shape != (
            16000,
            32,
            3,
        ):  # 25 rows of 20 images instead of one column
            pixels = pixels.reshape(25, 32, 20, 32, 3).transpose(0, 2, 1, 3, 4)
        images.append(pixels.reshape(500, 32, 32, 3))
    with lzma.open(folder / "index.csv.xz", "rt") as file:
        labels = [
            int(row["label"])
            for row in csv.DictReader(file)
            if row["split"] == split
        ]
    x = (
        torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float()
        / 255
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS)
    return TensorDataset((x - mean) / std, torch.tensor(labels))


def loader(
    data: Dataset[Any], batch_size: int, *, shuffle: bool
) -> DataLoader[Any]:
    """Whole batches by one index operation."""
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    return DataLoader(
        data,
        sampler=BatchSampler(order, batch_size, drop_last=shuffle),
        batch_size=None,
    )


class StepTimes(Callback):
    """Seconds per training step and per projection."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.projections: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock once the device has nothing left to do."""
        synchronise()
        self._begin = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop it."""
        synchronise()
        self.steps.append(time.perf_counter() - self._begin)
        self.projections.append(
            float(trainer.callback_metrics["projection_seconds"])
        )

    def summary(self) -> dict[str, float]:
        """Medians without the first tenth."""
        cut = len(self.steps) // 10
        step, projection = (
            statistics.median(self.steps[cut:]),
            statistics.median(self.projections[cut:]),
        )
        return {
            "seconds per step": step,
            "seconds per projection": projection,
            "share": projection / step,
        }


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Study:
    """All parts that train networks.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.train, self.test = (
            read_cifar10(args.data_dir / "cifar10", split)
            for split in ("train", "test")
        )
        if args.smoke:
            self.train, self.test = (
                TensorDataset(*data[:600]) for data in (self.train, self.test)
            )
        cut = len(self.train) * 9 // 10
        self.held_out = TensorDataset(*self.train[cut:])
        self.train = TensorDataset(*self.train[:cut])
        self.batch = 60 if args.smoke else 500

    def trainer(self, epochs: int, **options: Any) -> Trainer:
        """A quiet trainer on whatever accelerator there is."""
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        }
        return Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            **{**quiet, **options},
        )

    def trained(self, make: Callable[[], nn.Module], seed: int) -> Classifier:
        """One network from one seed."""
        seed_everything(seed)
        epochs = 1 if self.args.smoke else self.args.epochs
        model = Classifier(make(), epochs * (len(self.train) // self.batch))
        precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
        self.trainer(epochs, precision=precision).fit(
            model, loader(self.train, self.batch, shuffle=True)
        )
        return model.cpu().eval()

    def accuracy(
        self, model: Classifier, weights: dict[str, Tensor], *, reset: bool
    ) -> dict[str, float]:
        """Test loss and accuracy of some weights."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        probe = copy.deepcopy(model)
        probe.load_state_dict(weights)
        probe = probe.to(device).eval()
        if reset:
            probe = reset_batch_norm(
                probe,
                (
                    x
                    for x, _ in list(
                        loader(self.train, self.batch, shuffle=False)
                    )[:20]
                ),
            )
        loss = correct = 0.0
        with torch.no_grad():
            for x, y in loader(self.test, self.batch, shuffle=False):
                logits = probe(x.to(device)).cpu()
                loss += float(
                    functional.cross_entropy(logits, y, reduction="sum")
                )
                correct += float((logits.argmax(1) == y).sum())
        return {
            "loss": loss / len(self.test),
            "accuracy": correct / len(self.test),
        }

    def merge(
        self, model: Classifier, ends: list[dict[str, Tensor]], **options: Any
    ) -> tuple[MergeModule, StepTimes]:
        """Learn the permutation, from plain weight matching on."""
        spec = infer_spec(model)
        start = match_weights(spec, *ends).permutation
        optimizer = partial(torch.optim.SGD, lr=self.args.lr, momentum=0.9)
        module, times = (
            MergeModule(
                model, *ends, spec=spec, init=start, optimizer=optimizer
            ),
            StepTimes(),
        )
        epochs = 1 if self.args.smoke else self.args.merge_epochs
        trainer = self.trainer(epochs, callbacks=[times], **options)
        held_out = loader(self.held_out, self.batch, shuffle=False)
        trainer.fit(
            module, loader(self.train, self.batch, shuffle=True), held_out
        )
        return module, times

    def run(self, name: str, make: Callable[[], nn.Module]) -> dict[str, Any]:
        """Train twice, merge in every way, report."""
        models = [self.trained(make, seed) for seed in (1, 2)]
        a, b = ends = [copy.deepcopy(model.state_dict()) for model in models]
        weights = match_weights(infer_spec(models[0]), a, b)
        row: dict[str, Any] = {
            f"end {i}": self.accuracy(models[0], end, reset=False)
            for i, end in enumerate(ends)
        }
        identity = Permutation.identity(weights.permutation.spec)
        for label, permutation in (
            ("naive", identity),
            ("weight matching", weights.permutation),
        ):
            middle = interpolate(a, permutation.apply(b), 0.5)
            row[label] = self.accuracy(models[0], middle, reset=False)
            row[f"{label}, statistics re-estimated"] = self.accuracy(
                models[0], middle, reset=True
            )
        for precision in ("32-true", "bf16-mixed"):
            module, times = self.merge(models[0], ends, precision=precision)
            merged = self.accuracy(
                models[0], module.merged_state_dict(), reset=False
            )
            row[f"straight-through, {precision}"] = {
                **merged,
                **times.summary(),
            }
        print(json.dumps({name: row}, indent=1), flush=True)
        return row


def main() -> int:
    """Run everything; the exit status is that of the tests."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="folder that holds cifar10/",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gpu-results"),
        help="where the tables go",
    )
    parser.add_argument(
        "--epochs", type=int, default=40, help="epochs of each training"
    )
    parser.add_argument(
        "--merge-epochs",
        type=int,
        default=10,
        help="epochs of the straight-through estimator",
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=1.0,
        help="learning rate of the straight-through estimator",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="tiny networks and few steps, to see that the script works",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    status = 0
    if not args.smoke:
        if not torch.cuda.is_available():
            sys.exit(
                "no CUDA device (try --smoke to see that the script works)"
            )
        print(torch.cuda.get_device_name(), torch.__version__)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "cuda",
            "-q",
            str(ROOT / "tests"),
        ]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
    study = Study(args)
    small = args.smoke
    networks = {
        "resnet20x4": partial(resnet20, 1, 1)
        if small
        else partial(resnet20, 4),
        "vgg11": partial(vgg11, 0.0625 if small else 1.0),
    }
    table = {name: study.run(name, make) for name, make in networks.items()}
    (args.out / "cifar10.json").write_text(json.dumps(table, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
