"""A working folder with two checkpoints and the user's own code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.commands import Files
from helpers.models import randomise

from lightning_rebasin.symmetry import Permutation, infer_spec

LOADERS = """
import torch
from helpers.classifier import Classifier, blobs
from lightning.pytorch import LightningDataModule
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

def pair():
    return DataLoader(blobs(64, 0), batch_size=16), DataLoader(blobs(50, 1), batch_size=16)

class Blobs(LightningDataModule):
    def __init__(self, samples=64):
        super().__init__()
        self.samples = samples
    def train_dataloader(self):
        return DataLoader(blobs(self.samples, 0), batch_size=16)
    def val_dataloader(self):
        return DataLoader(blobs(50, 1), batch_size=16)

class Plain(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log('val_loss', cross_entropy(self(batch[0]), batch[1]))

class Scored(Classifier):
    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log('val_loss', cross_entropy(logits, batch[1]))
        self.log('val_acc', (logits.argmax(1) == batch[1]).float().mean())

def network():
    return Classifier(hidden=6, batch_norm=True).net

def narrow():
    return DataLoader([(torch.zeros(5), 0)] * 8), DataLoader([(torch.zeros(5), 0)] * 8)

def broken():
    raise RuntimeError('no disk')
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """a.ckpt, the same network in another order as b.ckpt, and a module with loaders in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    net = Classifier(hidden=6, batch_norm=True)
    net.example_input_array = torch.randn(4, 6)
    state = {n: t.clone() for n, t in randomise(net).state_dict().items()}
    order = Permutation.random(
        infer_spec(net), torch.Generator().manual_seed(0)
    )
    common = {
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"hidden": 6, "batch_norm": True, "x": print},
    }
    torch.save({**common, "state_dict": state}, "a.ckpt")
    torch.save({**common, "state_dict": order.apply(state)}, "b.ckpt")
    loaders = f"loaders_{tmp_path.name}"
    (tmp_path / f"{loaders}.py").write_text(LOADERS)
    return Files(state, loaders)
