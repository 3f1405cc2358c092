"""A small VGG11 of our own, trained twice for a few minutes: plain convolutions, no norm and no residual stream.

An eighth of the usual width, CIFAR-10, 5000 images, 12 epochs: about 45 % instead of the 89.5 % of a full training,
which is enough to compare ways to merge.  Used by merge_by_measurement.py; the weights are made only once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.data import cifar10, normalise

#: Channels of the eight convolutions, and a 2 × 2 maximum behind some of them, in the order of VGG11.
LAYERS: tuple[int | str, ...] = (
    *(8, "max", 16, "max", 32, 32, "max"),
    *(64, 64, "max", 64, 64, "max"),
)
IMAGES, EPOCHS, BATCH = 5000, 12, 100


def vgg11() -> nn.Module:
    """The network: eight convolutions and one linear layer."""
    parts: list[nn.Module] = []
    channels = 3
    for layer in LAYERS:
        if isinstance(layer, str):
            parts.append(nn.MaxPool2d(2))
            continue
        parts += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU()]
        channels = layer
    for part in parts:
        if isinstance(part, nn.Conv2d):
            # Without norms the usual start lets the signal die.
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels, 10))


def trained(folder: Path, seed: int) -> Path:
    """The file with one training; it is made if it is not there."""
    path = folder / f"vgg11-{seed}.pt"
    if path.exists():
        return path
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = vgg11().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        _train(network, seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def prepared(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Images and labels; the memory format is faster on a CPU."""
    images, labels = cifar10("train" if split == "train" else "test", count)
    x = normalise(images, "cifar10-resnet20")
    return x.contiguous(memory_format=torch.channels_last), labels


def _train(network: nn.Module, seed: int) -> None:
    """Adam with one cycle of the learning rate, and flips."""
    images, labels = prepared("train", IMAGES)
    steps = EPOCHS * IMAGES // BATCH
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in trange(EPOCHS, desc=f"VGG11, seed {seed}"):
        order = torch.randperm(IMAGES, generator=generator)
        for chosen in order.split(BATCH):
            x = images[chosen]
            flipped = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(flipped[:, None, None, None], x.flip(3), x)
            loss = cross_entropy(network(x), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
