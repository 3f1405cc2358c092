"""Lightning checkpoints that other people trained, merged from their files, and tested by Lightning's own trainer."""

import warnings
from functools import lru_cache

import pytest
import torch
from helpers.data import mnist
from helpers.shared import shared_path
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.checkpoints import merge_checkpoints


class Evaluated(LightningModule):
    """Accuracy on a test set; the networks below have the keys and hyper-parameters of the files."""

    scale, shift = 1.0, 0.0

    def test_step(self, batch, _):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())


class SmallMLP(Evaluated):
    """v2.3.3: 784-64-64-10, keys l1, l2, l3, raw pixels."""

    def __init__(self, hidden=64, names=("l1", "l2", "l3")):
        super().__init__()
        sizes = (784, hidden, hidden, 10)
        for name, a, b in zip(names, sizes, sizes[1:], strict=False):
            setattr(self, name, nn.Linear(a, b))
        self.names = names

    def forward(self, x):
        x = x.flatten(1)
        for name in self.names[:-1]:
            x = F.relu(getattr(self, name)(x))
        return getattr(self, self.names[-1])(x)


class WideMLP(Evaluated):
    """v1.3.4: 784-128-256-10, keys layer_1, layer_2, layer_3."""

    scale, shift = 0.3081, 0.1307

    def __init__(self):
        super().__init__()
        self.layer_1, self.layer_2, self.layer_3 = (
            nn.Linear(784, 128),
            nn.Linear(128, 256),
            nn.Linear(256, 10),
        )

    def forward(self, x):
        return self.layer_3(
            F.relu(self.layer_2(F.relu(self.layer_1(x.flatten(1)))))
        )


class CNN(Evaluated):
    """v2.6.5: conv 32, pool, conv 64, pool, linear; hyper-parameter num_classes."""

    scale, shift = 0.3081, 0.1307

    def __init__(self, num_classes):
        super().__init__()
        self.save_hyperparameters()
        block = lambda a, b: (
            nn.Conv2d(a, b, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.features = nn.Sequential(*block(1, 32), *block(32, 64))
        self.classifier = nn.Linear(3136, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@lru_cache(maxsize=4)
def loader(split, network, count):
    images, labels = mnist(split)
    images = (images[:count] - network.shift) / network.scale
    return DataLoader(TensorDataset(images, labels[:count]), batch_size=250)


def score(path, network):
    """Accuracy of a file, by ``trainer.test(ckpt_path=...)``."""
    quiet = (
        "logger",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_checkpointing",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator="cpu", **dict.fromkeys(quiet, False))
        result = trainer.test(
            network,
            loader("test", type(network), 4000),
            ckpt_path=path,
            verbose=False,
        )
    return result[0]["accuracy"]


#: Measured on 4000 test images, statistics from 2000: naive .66, .28, .70, .91; matched .86, .86, .96, .98; repaired
#: .89, .89, .96, .98.
CASES = {
    # family: network, files, lowest accuracy of the ends, highest of the naive average, lowest matched, and repaired
    "v2.3.3 pair": (
        SmallMLP,
        ["v2.3.3-mnist-mlp-00", "v2.3.3-mnist-mlp-01"],
        0.885,
        0.70,
        0.84,
        0.88,
    ),
    "v2.3.3 four": (
        SmallMLP,
        [f"v2.3.3-mnist-mlp-0{i}" for i in (0, 1, 5, 6)],
        0.885,
        0.32,
        0.80,
        0.87,
    ),
    "v1.3.4 pair": (
        WideMLP,
        ["v1.3.4-mnist-mlp-a", "v1.3.4-mnist-mlp-b"],
        0.955,
        0.75,
        0.955,
        0.95,
    ),
    "v2.6.5 pair": (
        CNN,
        ["v2.6.5-mnist-cnn-a", "v2.6.5-mnist-cnn-b"],
        0.97,
        0.94,
        0.97,
        0.97,
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, marks=[pytest.mark.slow] if CASES[case][0] is CNN else []
        )
        for case in CASES
    ],
)
def test_merged_files_pass_the_trainers_test(tmp_path, case):
    kind, names, ends, naive, matched, repaired = CASES[case]
    paths = [shared_path(f"data/lightning/{name}.ckpt") for name in names]
    network = kind(10) if kind is CNN else kind()
    data = [batch[0] for batch in loader("train", kind, 2000)]
    scores = {}
    for method, statistics in (
        ("average", "none"),
        ("weight", "none"),
        ("weight", "repair"),
    ):
        out = tmp_path / f"{method}-{statistics}.ckpt"
        report = merge_checkpoints(
            paths,
            out,
            module=network,
            method=method,
            data=data,
            statistics=statistics,
        )
        assert method == "average" or max(report.errors) < 1e-8
        scores[method, statistics] = score(out, network)
    best = min(
        score(path, kind(10) if kind is CNN else kind())
        for path in _readable(paths, tmp_path)
    )
    assert best > ends
    assert scores["average", "none"] < naive
    assert scores["weight", "none"] > matched
    assert scores["weight", "repair"] > repaired
    assert scores["weight", "repair"] > scores["average", "none"]


def _readable(paths, tmp_path):
    """Old files that the trainer itself refuses, rewritten."""
    for path in paths:
        merge_checkpoints(
            [path], tmp_path / path.name, method="none", force=True
        )
        yield tmp_path / path.name


def test_merged_hyper_parameters_build_the_network(tmp_path):
    paths = [
        shared_path(f"data/lightning/v2.6.5-mnist-cnn-{x}.ckpt") for x in "ab"
    ]
    merge_checkpoints(
        paths,
        tmp_path / "m.ckpt",
        module=CNN(10),
        example=torch.randn(2, 1, 28, 28),
    )
    assert (
        CNN.load_from_checkpoint(tmp_path / "m.ckpt").hparams.num_classes == 10
    )
