"""Are real and adversarial inputs of a class connected by paths of low loss?  LeNet on MNIST, ResNet-20 on CIFAR-10.

Run from the repository with the shared data beside it (or REBASIN_SHARED set), one command per network:

    python examples/inputs_study.py lenet
    python examples/inputs_study.py resnet20

Tables (Markdown), numbers (JSON) and pictures (PNG) go to examples/results/inputs_lenet and inputs_resnet20.  Parts
that are there already are kept; ``--parts within pgd`` measures some of them, ``--fresh`` forgets all.

Images are test images that the network classifies with a loss below .1.  A pair is a real image of a class and another
input that the network puts into the same class: a real one (*within*), or an attacked image of another class.
*Between* pairs are real images of two classes, with the loss −log(p_a + p_b), which is low at both ends.  *Synthetic*
and *untrained* pairs are optimised from noise, for the trained and for an untrained network.

The naive path is the segment (51 points), the optimised one comes from ``connect_inputs`` with the threshold .5 (at
most 4 pieces and 300 steps a corner, images stay in [0, 1]).  Detection tells attacked inputs from real ones, each
judged once by the segment from the other end of its pair (as published) and once by a BarrierDetector with three
references a class, as it is and fitted on half of the real and PGD inputs, which are left out of what is reported.
The loss of the input alone, without any path, is there to compare with.  Intervals are bootstrap intervals of 95 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import inputs_attacks as attacks
from helpers.data import NORMALISATION, cifar10, mnist
from helpers.models import LeNet, ResNet20, load_weights
from helpers.shared import shared_path
from inputs_report import write_report

from lightning_rebasin import (
    BarrierDetector,
    connect_inputs,
    input_barrier,
    optimal_inputs,
)
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.inputs import InputPaths

RESULTS = Path(__file__).resolve().parent / "results"
THRESHOLD, SURE = 0.5, 0.1
POINTS, PIECES, STEPS = 51, 4, 300
REFERENCES, PER_CLASS = 3, 40
#: What the adaptive attack looks at on each way, and how often.
LOOKS, ADAPTIVE_STEPS = 4, 40


@dataclass(frozen=True)
class Case:
    """One network with its data; how many pairs there are, how many are attacked, how many get an optimised path."""

    name: str
    checkpoint: str
    make: Callable[[], nn.Module]
    images: Callable[[], tuple[Tensor, Tensor]]
    radius: float
    pairs: int
    attacked: int
    optimised: int


CASES = {
    "lenet": Case(
        "LeNet on MNIST",
        "mnist-lenet/a.pt",
        LeNet,
        lambda: mnist("test"),
        0.3,
        100,
        100,
        50,
    ),
    "resnet20": Case(
        "ResNet-20 on CIFAR-10",
        "cifar10-resnet20/a.th",
        ResNet20,
        lambda: cifar10("test", 1500),
        8 / 255,
        60,
        30,
        10,
    ),
}


class OnPixels(nn.Module):
    """A network that takes pixels in [0, 1] and normalises them itself."""

    def __init__(self, network: nn.Module, checkpoint: str) -> None:
        super().__init__()
        mean, std = NORMALISATION[checkpoint]
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network((x - self.mean) / self.std)


@dataclass(frozen=True)
class Pairs:
    """Both ends, the target of each pair, and which attacks reached their class."""

    a: Tensor
    b: Tensor
    target: Tensor
    reached: float = 1.0


class Study:
    """The images of one case, dealt into references, first ends, real inputs and victims of attacks."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        folder = case.checkpoint.split("/")[0]
        self.untrained = fast(OnPixels(case.make(), folder))
        network = case.make()
        file = shared_path(f"data/checkpoints/{case.checkpoint}")
        network.load_state_dict(load_weights(file))
        self.module = fast(OnPixels(network, folder))
        self.pools = self._pools()

    def _pools(self) -> Tensor:
        """Images that the network is sure of, shape ``(classes, PER_CLASS, *image)``."""
        images, labels = self.case.images()
        with torch.no_grad():
            found = []
            for x, y in zip(images.split(250), labels.split(250), strict=True):
                found.append(attacks.losses(self.module, x, y))
        sure = torch.cat(found) < SURE
        rows = []
        for label in range(10):
            own = images[sure & (labels == label)]
            rows.append(own[:PER_CLASS])
        return torch.stack(rows)

    @cached_property
    def detector(self) -> BarrierDetector:
        """The first images of every class are the references."""
        chosen = self.pools[:, :REFERENCES].flatten(0, 1)
        classes = torch.arange(10).repeat_interleave(REFERENCES)
        return BarrierDetector(chosen, classes, points=21)

    def _deal(self, start: int) -> tuple[Tensor, Tensor]:
        """One image of each class after the other, from this place of the pools on."""
        count = self.case.pairs
        labels = torch.arange(count) % 10
        return self.pools[labels, start + torch.arange(count) // 10], labels

    @property
    def firsts(self) -> tuple[Tensor, Tensor]:
        """First ends, and their classes."""
        return self._deal(REFERENCES)

    @property
    def reals(self) -> tuple[Tensor, Tensor]:
        """Second ends of the pairs within classes."""
        return self._deal(REFERENCES + self.case.pairs // 10)

    @property
    def victims(self) -> tuple[Tensor, Tensor]:
        """Images that are attacked."""
        return self._deal(REFERENCES + 2 * (self.case.pairs // 10))

    @property
    def targets(self) -> Tensor:
        """The class that each victim shall get: all others in turn."""
        _, labels = self.victims
        shift = 1 + torch.arange(len(labels)) // 10 % 9
        return (labels + shift) % 10

    def within(self) -> Pairs:
        """Real images of one class."""
        (a, labels), (b, _) = self.firsts, self.reals
        return Pairs(a, b, labels)

    def between(self) -> Pairs:
        """Real images of two classes; the target holds both."""
        (b, labels), targets = self.victims, self.targets
        a = self.partners(targets)
        return Pairs(a, b, torch.stack([targets, labels], 1))

    def partners(self, classes: Tensor) -> Tensor:
        """A first end of each of these classes."""
        images, _ = self.firsts
        rows = torch.arange(len(classes)) // 10
        return images[10 * rows + classes]

    def attacked(self, kind: str) -> Pairs:
        """Attacked images that reached a class of others, with a real image of that class."""
        count = self.case.attacked
        images, labels = (each[:count] for each in self.victims)
        wanted = self.targets[:count]
        moved = torch.cat(
            [
                self._attack(kind, x, own, target)
                for x, own, target in zip(
                    images.split(50),
                    labels.split(50),
                    wanted.split(50),
                    strict=True,
                )
            ]
        )
        with torch.no_grad():
            given = self.module(moved).argmax(1)
        reached = given != labels if kind == "fgsm" else given == wanted
        target = given if kind == "fgsm" else wanted
        a = self.partners(target)
        share = float(reached.double().mean())
        return Pairs(a[reached], moved[reached], target[reached], share)

    def _attack(
        self, kind: str, images: Tensor, labels: Tensor, target: Tensor
    ) -> Tensor:
        module, radius = self.module, self.case.radius
        if kind == "fgsm":
            return attacks.fgsm(module, images, labels, radius)
        if kind == "pgd":
            return attacks.pgd(
                lambda x: attacks.losses(module, x, target), images, radius
            )
        if kind == "carlini-wagner":
            return attacks.carlini_wagner(module, images, target)
        if kind == "published":
            a = self.partners(target)
            with torch.no_grad():
                goals = attacks.losses(module, a, target)
            return attacks.adam_until(module, images, target, goals)
        own = self.pools[target, :REFERENCES]
        if kind == "adaptive-blind":
            own = self.pools[target, -REFERENCES:]
        objective = attacks.knowing_the_detector(module, target, own, LOOKS)
        return attacks.pgd(objective, images, radius, ADAPTIVE_STEPS)


def fast(module: nn.Module) -> nn.Module:
    """In eval mode, without gradients, in the memory format that is faster on a CPU."""
    module.eval().requires_grad_(requires_grad=False)
    return module.to(memory_format=torch.channels_last)


def either(output: Tensor, target: Tensor) -> Tensor:
    """−log(p_a + p_b): low for an image of either class."""
    both = output.log_softmax(1).gather(1, target)
    return -both.logsumexp(1)


ATTACKS = (
    "published",
    "fgsm",
    "pgd",
    "carlini-wagner",
    "adaptive-blind",
    "adaptive",
)
PARTS = ("within", "between", *ATTACKS, "synthetic", "untrained")
PICTURED = ("within", "published", "adaptive", "untrained")


def measure(study: Study, part: str, folder: Path) -> dict[str, Any]:
    """Naive and optimised paths of one kind of pairs, and the curves that the detector sees."""
    begin = time.perf_counter()
    module = study.untrained if part == "untrained" else study.module
    pairs = pairs_of(study, part)
    row: dict[str, Any] = {"pairs": len(pairs.a), "reached": pairs.reached}
    if not len(pairs.a):
        return row
    loss = either if part == "between" else None
    naive = input_barrier(
        module, pairs.a, pairs.b, pairs.target, loss=loss, points=POINTS
    )
    row["naive"] = list(naive.maxima)
    row["naive_curve"] = mean_curve(naive)
    low = []
    for i, path in enumerate(naive):
        if max(path.losses[0], path.losses[-1]) <= THRESHOLD:
            low.append(i)
    if low:
        row |= optimised(
            module, pairs, naive, low[: study.case.optimised], folder / part
        )
    if part in ("within", *ATTACKS):
        row["curves"] = study.detector.curves(study.module, pairs.b).tolist()
    row["seconds"] = round(time.perf_counter() - begin, 1)
    return row


def pairs_of(study: Study, part: str) -> Pairs:
    """The pairs of a part of the study."""
    if part == "untrained":
        return synthetic(study.untrained, study.pools.shape[2:])
    if part == "synthetic":
        return synthetic(study.module, study.pools.shape[2:])
    if part in ATTACKS:
        return study.attacked(part)
    return study.within() if part == "within" else study.between()


def optimised(
    module: nn.Module,
    pairs: Pairs,
    naive: InputPaths,
    chosen: list[int],
    stem: Path,
) -> dict[str, Any]:
    """Paths of low loss of some pairs, and a picture of the two with the highest segments."""
    best = connect_inputs(
        module,
        pairs.a[chosen],
        pairs.b[chosen],
        pairs.target[chosen],
        loss=either if pairs.target.ndim == 2 else None,
        threshold=THRESHOLD,
        points=25,
        max_pieces=PIECES,
        steps=STEPS,
        bounds=(0.0, 1.0),
    )
    straight = InputPaths(tuple(naive[i] for i in chosen))
    worst = sorted(range(len(best)), key=lambda i: -straight.maxima[i])
    if stem.name in PICTURED:
        picture = stem.with_name(f"paths_{stem.name}.png")
        title = f"{stem.name}: the two highest segments"
        best.plot(picture, pairs=worst[:2], title=title, segment=straight)
    return {
        "optimised": list(best.maxima),
        "pieces": [path.pieces for path in best],
        "lengths": [path.length for path in best],
    }


def synthetic(module: nn.Module, shape: torch.Size) -> Pairs:
    """Two inputs of every class from dark noise."""
    target = torch.arange(10).repeat(2)
    found = optimal_inputs(
        module,
        target,
        shape,
        noise=0.3,
        bounds=(0.0, 1.0),
        threshold=SURE,
        steps=400,
        learning_rate=0.02,
    )
    ready = torch.tensor(found.reached).reshape(2, 10)
    keep = ready.all(0)
    a, b = found.inputs[:10], found.inputs[10:]
    share = float(ready.double().mean())
    return Pairs(a[keep], b[keep], target[:10][keep], share)


def mean_curve(paths: InputPaths) -> list[float]:
    """The mean loss at every λ."""
    rows = torch.tensor([path.losses for path in paths], dtype=torch.float64)
    return rows.mean(0).tolist()


def main() -> None:
    """Measure what is not known yet, and write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=list(CASES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    folder = RESULTS / f"inputs_{args.network}"
    folder.mkdir(parents=True, exist_ok=True)
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    study = Study(CASES[args.network])
    for part in args.parts:
        # A file for each part: some may be measured by one process and some by another.
        file = runs / f"{part}.json"
        if file.exists() and not args.fresh:
            continue
        row = measure(study, part, folder)
        atomic_write_text(file, json.dumps(row))
        print(f"{part}: {row.get('seconds')} s", flush=True)
    known: dict[str, Any] = {}
    for part in PARTS:
        if (file := runs / f"{part}.json").exists():
            known[part] = json.loads(file.read_text())
    name = CASES[args.network].name
    print(write_report(name, known, study.detector, folder))


if __name__ == "__main__":
    main()
