"""MergeModule and matching on a CUDA device: the same answers as on the CPU.

Deselected by default (``-m cuda``); ``examples/gpu_study.py`` runs them.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from helpers.classifier import CLASSES, FEATURES, blobs
from helpers.models import mlp
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_rebasin import infer_spec, match_activations, match_weights
from lightning_rebasin.modules import MergeModule

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(FEATURES, 32, 32, CLASSES)
        self.example_input_array = torch.zeros(2, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])


def nets() -> list[Net]:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            for x, y in DataLoader(blobs(256, 0), batch_size=64):
                optimizer.zero_grad()
                cross_entropy(net(x), y).backward()
                optimizer.step()
        found.append(net)
    return found


def learned(accelerator: str, precision: str) -> MergeModule:
    a, b = (copy.deepcopy(net.state_dict()) for net in nets())
    module = MergeModule(
        Net(), a, b, optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(
            module,
            DataLoader(blobs(256, 0), batch_size=64),
            DataLoader(blobs(64, 1), batch_size=64),
        )
    assert torch.isfinite(trainer.callback_metrics["best_midpoint_loss"])
    module.loss_found = float(trainer.callback_metrics["best_midpoint_loss"])
    return module


def test_double_precision_run_equals_the_cpu() -> None:
    device, host = learned("gpu", "64-true"), learned("cpu", "64-true")
    assert device.permutation == host.permutation
    assert device.loss_found == pytest.approx(host.loss_found, rel=1e-8)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_runs_in_every_precision_and_keeps_float32_free_parameters(
    precision: str,
) -> None:
    module = learned("gpu", precision)
    assert module.free[0].dtype == torch.float32
    assert module.loss_found == pytest.approx(
        learned("cpu", "32-true").loss_found, rel=0.2
    )


def test_weight_matching_of_device_tensors_equals_the_cpu() -> None:
    a, b = nets()
    spec = infer_spec(a)
    host = match_weights(spec, a.state_dict(), b.state_dict())
    device = match_weights(spec, a.cuda().state_dict(), b.cuda().state_dict())
    assert device.objective == pytest.approx(host.objective, rel=1e-6)


@pytest.mark.parametrize("statistic", ["inner_product", "correlation"])
def test_activation_matching_on_the_device_equals_the_cpu(
    statistic: str,
) -> None:
    a, b = (net.double() for net in nets())
    spec = infer_spec(a)
    batches = [x.double() for x, _ in DataLoader(blobs(256, 0), batch_size=64)]
    host = match_activations(spec, a, b, batches, statistic=statistic)
    device = match_activations(
        spec, a.cuda(), b.cuda(), batches, statistic=statistic
    )
    assert device.permutation == host.permutation
