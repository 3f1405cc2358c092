"""Published numbers: the paper's counterexample, its counts of symmetries, and checkpoints that others trained."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.data import cifar10, mnist, normalise
from helpers.models import (
    LeNet,
    ResNet20,
    accuracy,
    load_weights,
    mlp,
    mnist_mlp,
)
from helpers.shared import shared_path
from torch import nn

from lightning_rebasin.symmetry import (
    Permutation,
    PermutationSpec,
    check_equivalence,
    infer_spec,
)

NETWORK_A = {
    "0.weight": [[-1.0, 0.0], [0.0, -1.0]],
    "0.bias": [1.0, 0.0],
    "2.weight": [[-1.0, 0.0], [0.0, 1.0]],
    "2.bias": [1.0, 0.0],
    "4.weight": [[-1.0, -1.0]],
}
NETWORK_B = {
    "0.weight": [[1.0, 0.0], [0.0, 1.0]],
    "0.bias": [0.0, 1.0],
    "2.weight": [[1.0, 0.0], [0.0, -1.0]],
    "2.bias": [0.0, 1.0],
    "4.weight": [[-1.0, -1.0]],
}


class CounterExample:
    """Two hidden layers of two units on the square [-1, 1]²; the class is ``x1 < 0 and x2 > 0``."""

    def __init__(self):
        self.net = mlp(2, 2, 2, 1).double()
        self.a, self.b = (
            {
                name: torch.tensor(v, dtype=torch.float64)
                for name, v in (net | {"4.bias": [0.0]}).items()
            }
            for net in (NETWORK_A, NETWORK_B)
        )
        self.spec = infer_spec(
            self.net, torch.zeros(1, 2, dtype=torch.float64)
        )
        grid = torch.linspace(-0.995, 0.995, 200, dtype=torch.float64)
        self.x = torch.cartesian_prod(grid, grid)
        self.label = (self.x[:, 0] < 0) & (self.x[:, 1] > 0)

    def outputs(self, state):
        return torch.func.functional_call(self.net, state, (self.x,)).squeeze(
            1
        )

    def error(self, state):
        # Zero counts as positive, whatever the rounding.
        return float(
            ((self.outputs(state) > -1e-9) != self.label).double().mean()
        )


def test_counterexample_every_permutation_meets_a_barrier():
    """Both networks are ``−relu(x1) − relu(−x2)``: no permutation of B connects them linearly."""
    case = CounterExample()
    function = -F.relu(case.x[:, 0]) - F.relu(-case.x[:, 1])
    assert torch.allclose(case.outputs(case.a), function) and torch.allclose(
        case.outputs(case.b), function
    )
    assert case.error(case.a) == case.error(case.b) == 0
    assert [group.size for group in case.spec.groups.values()] == [2, 2]
    products, barriers = [], []
    for first, second in itertools.product(([0, 1], [1, 0]), repeat=2):
        orders = dict(
            zip(
                case.spec.groups,
                (torch.tensor(first), torch.tensor(second)),
                strict=True,
            )
        )
        permuted = Permutation(case.spec, orders).apply(case.b)
        assert torch.allclose(case.outputs(permuted), function)
        products.append(
            sum(
                float((case.a[name] * permuted[name]).sum()) for name in case.a
            )
        )
        path = [
            {n: torch.lerp(case.a[n], permuted[n], lam) for n in case.a}
            for lam in torch.linspace(0, 1, 25).tolist()
        ]
        barriers.append(max(case.error(state) for state in path))
    assert sorted(products) == [-2.0, 1.0, 3.0, 6.0]
    # A quarter of the square; its diagonal, on the decision boundary, is half a percent of the grid.
    assert barriers == pytest.approx([0.25] * 4, abs=0.003)


def floor_sum(spec):
    return sum(
        math.floor(group.log10_symmetries) for group in spec.groups.values()
    )


def test_count_of_the_papers_mlp():
    spec = infer_spec(mlp(784, 512, 512, 512, 10), torch.zeros(1, 784))
    assert spec.log10_symmetries == pytest.approx(3499.62, abs=0.01)
    assert floor_sum(spec) == 3498


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel, as the paper's VGG16 and ResNet20 use it."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def vgg16():
    layers, before = [], 3
    for width in (
        64,
        64,
        0,
        128,
        128,
        0,
        256,
        256,
        256,
        0,
        512,
        512,
        512,
        0,
        512,
        512,
        512,
        0,
    ):
        layers += (
            [
                nn.Conv2d(before, width, 3, padding=1),
                ChannelNorm(width),
                nn.ReLU(),
            ]
            if width
            else [nn.MaxPool2d(2)]
        )
        before = width or before
    head = [
        nn.Flatten(),
        nn.Linear(512, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 10),
    ]
    return nn.Sequential(*layers, *head)


def test_count_of_the_papers_vgg16():
    spec = infer_spec(vgg16(), torch.zeros(1, 3, 32, 32))
    assert spec.log10_symmetries == pytest.approx(35168.55, abs=0.01)
    assert floor_sum(spec) == 35160


class ConvShortcutBlock(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            ChannelNorm(after),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            ChannelNorm(after),
        )
        self.short = None
        if before != after:
            self.short = nn.Sequential(
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                ChannelNorm(after),
            )

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


def resnet20(width):
    """The paper's ResNet20: 3×3 stride-2 convolution and norm in the shortcuts."""
    blocks, before = (
        [
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            ChannelNorm(width),
            nn.ReLU(),
        ],
        width,
    )
    for stage, after in enumerate((width, 2 * width, 4 * width)):
        for block in range(3):
            blocks.append(
                ConvShortcutBlock(
                    before, after, 2 if stage and not block else 1
                )
            )
            before = after
    return nn.Sequential(
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def test_count_of_the_papers_resnet20_ties_the_residual_streams():
    module = resnet20(16)
    spec = infer_spec(module, torch.zeros(1, 3, 32, 32))
    assert (
        sorted(g.size for g in spec.groups.values())
        == [16] * 4 + [32] * 4 + [64] * 4
    )
    assert spec.log10_symmetries == pytest.approx(551.38, abs=0.01)


@pytest.mark.slow
def test_count_of_the_widest_resnet20():
    spec = infer_spec(resnet20(512), torch.zeros(1, 3, 32, 32))
    assert spec.log10_symmetries == pytest.approx(38801.99, abs=0.01)


def test_untied_count_would_be_another():
    """The published table counts every convolution as independent, which residual connections forbid."""
    sizes = [16] * 7 + [32] * 7 + [64] * 7
    untied = sum(math.lgamma(n + 1) / math.log(10) for n in sizes)
    assert untied > 551.38 + 300


def trained(folder, name, module):
    module.load_state_dict(
        load_weights(shared_path(f"data/checkpoints/{folder}/{name}"))
    )
    return module.eval()


MNIST = [
    ("mnist-mlp", "a.pt", mnist_mlp, 0.9772),
    ("mnist-mlp", "b.pt", mnist_mlp, 0.9775),
    ("mnist-lenet", "a.pt", LeNet, 0.9912),
    ("mnist-lenet", "b.pt", LeNet, 0.9897),
]


@pytest.mark.parametrize(("folder", "name", "build", "expected"), MNIST)
def test_trained_mnist_networks_keep_their_accuracy(
    folder, name, build, expected
):
    module = trained(folder, name, build())
    images, labels = mnist("test")
    images = normalise(images, folder)
    assert accuracy(module, images, labels) == pytest.approx(
        expected, abs=5e-5
    )
    spec = infer_spec(module, images[:4])
    sizes = {"mnist-mlp": [100, 200, 400], "mnist-lenet": [20, 50, 500]}[
        folder
    ]
    assert sorted(g.size for g in spec.groups.values()) == sizes
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(module, p, images[:16]) < 1e-12
    before = module(images[:500]).argmax(1)
    module.load_state_dict(p.apply(module.state_dict()))
    assert torch.equal(module(images[:500]).argmax(1), before)


def test_trained_resnet20_with_option_a_shortcuts():
    """Zero-padded channels: the shortcut ties each stage to a part of the next, so groups of one stage split."""
    module = trained("cifar10-resnet20", "a.th", ResNet20())
    images = normalise(cifar10("test", 32)[0], "cifar10-resnet20")
    spec = infer_spec(module, images[:2])
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(module, p, images[:8]) < 1e-10
    # Nine inner groups, and the residual stream: 16 of stage one, 16 new in stage two, 32 new in stage three (padding
    # puts half of them on either side).
    assert (
        sorted(g.size for g in spec.groups.values())
        == [16] * 5 + [32] * 4 + [64] * 3
    )
    assert spec.maps["layer3.0.conv2.weight"].dims_of(
        spec.maps["layer3.0.bn2.weight"].components[0].group
    ) == (0,)
    assert all(
        tensor in spec.maps
        for tensor in ("bn1.running_mean", "layer3.2.bn2.running_var")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e"])
def test_trained_resnet20_reaches_its_accuracy(name):
    module = trained("cifar10-resnet20", f"{name}.th", ResNet20())
    images, labels = cifar10("test")
    assert (
        0.91
        <= accuracy(module, normalise(images, "cifar10-resnet20"), labels)
        <= 0.926
    )


def test_table_of_the_papers_mlp_equals_the_inferred_groups():
    table = {}
    for i in range(4):
        table[f"{2 * i}.weight"] = (
            f"P_{i}" if i < 3 else None,
            f"P_{i - 1}" if i else None,
        )
        table[f"{2 * i}.bias"] = (f"P_{i}" if i < 3 else None,)
    module = mlp(784, 512, 512, 512, 10)
    written = PermutationSpec.from_table(table, module.state_dict())
    assert written.log10_symmetries == pytest.approx(
        infer_spec(module, torch.zeros(1, 784)).log10_symmetries
    )
