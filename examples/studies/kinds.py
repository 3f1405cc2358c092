"""What kinds of symmetry beyond permutations are worth: the barrier per set of kinds, on networks of five sorts.

    python examples/studies/kinds.py

Perceptrons with tanh, with ReLU, and with ReLU behind batch norm (784-64-64-10, two seeds, 10000 MNIST images), the
shared LeNets, and small vision transformers on CIFAR-10 (4 layers of 64, 4 heads, patches of 8, 10000 images; GLMC's
own have 6 layers of 256 to 384 and full trainings).  Matched by weights, without data; the barrier is that of the test
loss over 11 λ, chord; batch norms are re-estimated.  Writes table.csv and numbers.json to
examples/results/studies/kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import (
    RESULTS,
    Classifier,
    State,
    arguments,
    images,
    loader,
    perceptron,
    trained,
    write,
)
from landscape_common import LeNet, load_weights, mnist_images, shared_path
from torch import Tensor, nn

from lightning_rebasin import infer_spec, match_weights, measure_barrier

FOLDER = RESULTS / "kinds"
WIDTH, COUNT, TESTED = 64, 10000, 2000
#: Sets of kinds, by the name of the column.
SETS: dict[str, Any] = {
    "permutation": "permutation",
    "and sign": ("permutation", "sign"),
    "and scale": ("permutation", "scale"),
    "all": "all",
}
Ends = tuple[State, State]


def hyperbolic() -> nn.Module:
    """The perceptron with tanh."""
    layers = []
    for layer in perceptron(WIDTH, depth=2):
        layers.append(nn.Tanh() if isinstance(layer, nn.ReLU) else layer)
    return nn.Sequential(*layers)


def normalised() -> nn.Module:
    """The perceptron with a batch norm before every ReLU."""
    layers: list[nn.Module] = []
    for layer in perceptron(WIDTH, depth=2):
        if isinstance(layer, nn.ReLU):
            layers.append(nn.BatchNorm1d(WIDTH))
        layers.append(layer)
    return nn.Sequential(*layers)


class VisionTransformer(nn.Module):
    """Patches of 8 × 8 pixels, pre-norm blocks, the mean over patches."""

    def __init__(self, layers: int = 4, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        blocks = []
        for _ in range(layers):
            block = nn.TransformerEncoderLayer(
                width,
                4,
                2 * width,
                0.0,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, 10)`` of flat images ``(batch, 3072)``."""
        pixels = x.unflatten(1, (3, 32, 32))
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        stream = self.blocks(tokens + self.positions)
        return self.head(self.norm(stream).mean(1))


def pair(
    name: str, make: Callable[[], nn.Module], data: str, epochs: int
) -> Ends:
    """Two trainings that differ in their seed."""
    train = images(data, "train", COUNT)
    first, second = (
        trained(
            f"kinds-{name}", make, train, seed=seed, epochs=epochs, batch=100
        )
        for seed in (0, 1)
    )
    return first, second


def lenets() -> Ends:
    """The shared pair."""
    folder = shared_path("data/checkpoints/mnist-lenet")
    return tuple(load_weights(folder / f"{end}.pt") for end in "ab")


def barrier(
    network: nn.Module, ends: Ends, example: Tensor, data: Any, kinds: Any
) -> float:
    """Height of the test loss above the chord, after matching over these kinds; ``None`` does not match."""
    named = [
        {f"network.{key}": value for key, value in end.items()} for end in ends
    ]
    module = Classifier(network)
    module.example_input_array = example
    if kinds is not None:
        spec = infer_spec(module, kinds=kinds)
        first, second = (spec.canonicalise(end) for end in named)
        match = match_weights(spec, first, second)
        named = [first, match.transform.apply(second)]
    train, test = data
    curve = measure_barrier(
        module, *named, test, points=11, batch_norm=list(train)
    )
    return curve.height("loss", "chord")


def row(
    name: str, network: nn.Module, ends: Ends, example: Tensor, data: Any
) -> dict[str, Any]:
    """One line of the table."""
    found: dict[str, Any] = {"network": name}
    for label, kinds in {"naive": None, **SETS}.items():
        found[label] = barrier(network, ends, example, data, kinds)
    return found


def batches(data: str) -> tuple[Any, Any]:
    """Training batches for batch norms, and test batches."""
    train = images(data, "train", 1000)
    test = images(data, "test", TESTED)
    return loader(*train, 250), loader(*test, 500)


def main() -> None:
    """Train, match, measure, write."""
    arguments(__doc__)
    rows = []
    flat, digits = torch.zeros(2, 784), batches("mnist")
    for name, make in {
        "perceptron, tanh": hyperbolic,
        "perceptron, ReLU": partial(perceptron, WIDTH, depth=2),
        "perceptron, batch norm": normalised,
    }.items():
        ends = pair(name.replace(", ", "-"), make, "mnist", 10)
        rows.append(row(name, make(), ends, flat, digits))
    pixels = [
        loader(*mnist_images(split, count, flat=False), 250)
        for split, count in (("train", 1000), ("test", TESTED))
    ]
    rows.append(
        row("LeNet", LeNet(), lenets(), torch.zeros(2, 1, 28, 28), pixels)
    )
    ends = pair("vit", VisionTransformer, "cifar10", 15)
    rows.append(
        row(
            "vision transformer",
            VisionTransformer(),
            ends,
            torch.zeros(2, 3072),
            batches("cifar10"),
        )
    )
    write(FOLDER, rows, recipe=__doc__, seeds=[0, 1])


if __name__ == "__main__":
    main()
