"""A hundred pairs at once against one pair at a time: ``connect_inputs``, and the loop of the published notebooks.

    pytest -m benchmark tests/benchmarks/bench_inputs.py -s

What is compared is the CPU time of the process for the same work: pairs of inputs of two classes under the loss
−log(p_a + p_b), all of which need a corner.  The notebooks' loop moves one point with torch's Adam, projects its
gradient and never stops early; it measures the segment alone, and not the path that comes out.
"""

from __future__ import annotations

import pytest
import torch
from helpers.data import mnist, normalise
from helpers.models import LeNet, ResNet20, load_weights, mlp
from helpers.shared import shared_path
from helpers.timing import cpu_seconds
from helpers.trained import trained_mlp
from torch import Tensor, nn

from lightning_rebasin import connect_inputs, input_barrier

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
PAIRS, STEPS = 100, 20
OPTIONS = {
    "threshold": 0.05,
    "steps": STEPS,
    "max_pieces": 2,
    "points": 11,
    "proximity": 0.1,
}


def either(output: Tensor, target: Tensor) -> Tensor:
    """−log(p_a + p_b), above the threshold at no end."""
    both = output.log_softmax(1).gather(1, target).logsumexp(1)
    return (-both).clamp(min=0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_at_a_time(
    module: nn.Module, ends: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[float]]:
    corners, maxima = [], []
    for i in range(PAIRS):
        own = (each[i : i + 1] for each in ends)
        paths = connect_inputs(module, *own, loss=either, **OPTIONS)
        corners.append(paths[0].corners)
        maxima.append(paths[0].maximum)
    return corners, maxima


def notebook(
    module: nn.Module, a: Tensor, b: Tensor, target: Tensor
) -> Tensor:
    """One pair as the published notebooks do it."""
    lam = torch.linspace(0, 1, OPTIONS["points"])[:, None]
    shape = [-1, *[1] * a.ndim]
    line = a + lam.reshape(shape) * (b - a)
    with torch.no_grad():
        losses = either(module(line), target.expand(len(line), 2))
    start = line[losses.argmax()]
    unit = (b - a) / (b - a).norm()
    moved = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([moved], lr=0.005)
    for _ in range(STEPS):
        loss = either(module(moved[None]), target[None]).sum()
        loss = loss + 0.1 * (moved - start).square().mean()
        optimiser.zero_grad()
        loss.backward()
        moved.grad -= (moved.grad * unit).sum() * unit
        optimiser.step()
    return moved.detach()


def lenet() -> tuple[nn.Module, Tensor, Tensor]:
    module = LeNet()
    file = shared_path("data/checkpoints/mnist-lenet/a.pt")
    module.load_state_dict(load_weights(file))
    images, labels = mnist("test")
    return module, normalise(images[:1000], "mnist-lenet"), labels[:1000]


def perceptron() -> tuple[nn.Module, Tensor, Tensor]:
    module = mlp(784, 512, 512, 512, 10)
    module.load_state_dict(trained_mlp(0, epochs=1))
    images, labels = mnist("test")
    return module, images[:1000].flatten(1), labels[:1000]


def resnet20() -> tuple[nn.Module, Tensor, Tensor]:
    module = ResNet20()
    file = shared_path("data/checkpoints/cifar10-resnet20/a.th")
    module.load_state_dict(load_weights(file))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1000, 3, 32, 32, generator=generator)
    return module, images, torch.zeros(1000, dtype=torch.long)


def pairs(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with two classes each for which the loss at the ends is low, and between them high."""
    with torch.no_grad():
        given = module(images).argmax(1)
    order = torch.arange(len(images) // 2)
    a, b = images[order], images[order + len(images) // 2]
    target = torch.stack([given[order], given[order + len(order)]], 1)
    paths = input_barrier(module, a, b, target, loss=either, points=11)
    ends = torch.tensor([max(p.losses[0], p.losses[-1]) for p in paths])
    middle = torch.tensor(paths.maxima)
    chosen = ((ends < 0.05) & (middle > 0.2)).nonzero().flatten()[:PAIRS]
    assert len(chosen) == PAIRS, len(chosen)
    return a[chosen], b[chosen], target[chosen]


@pytest.mark.parametrize("make", [perceptron, lenet, resnet20])
def test_a_hundred_pairs_at_once(make):
    module, images, _ = make()
    # The memory format that is faster on a CPU, for one pair and for many.
    module.eval().to(memory_format=torch.channels_last)
    ends = pairs(module, images)
    options = {**OPTIONS, "loss": either}
    connect_inputs(module, *ends, **options)
    batched, paths = cpu_seconds(
        lambda: connect_inputs(module, *ends, **options)
    )
    alone, (corners, maxima) = cpu_seconds(lambda: one_at_a_time(module, ends))
    theirs, _ = cpu_seconds(
        lambda: [notebook(module, *pair) for pair in zip(*ends, strict=True)]
    )
    off = max(
        float((path.corners - own).abs().max())
        for path, own in zip(paths, corners, strict=True)
    )
    worst = max(
        abs(path.maximum - own)
        for path, own in zip(paths, maxima, strict=True)
    )
    print(
        f"\n{make.__name__}: {PAIRS} pairs at once {batched:.2f} s, one at a time {alone:.2f} s "
        f"({alone / batched:.1f}×; wanted 10×), notebook {theirs:.2f} s ({theirs / batched:.1f}×); "
        f"corners differ by {off:.1e} at most, highest losses by {worst:.1e}"
    )
