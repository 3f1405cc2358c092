"""With the callbacks attached, training is bitwise what it is without them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_rebasin import CheckpointSnapshot, LossBarrier

OWN = "barrier"


class Diary(Callback):
    """Everything a user could see, at the end of every validation and of every epoch."""

    def __init__(self):
        self.entries = []

    def write(self, trainer, module):
        logged = {
            k: float(v)
            for k, v in trainer.logged_metrics.items()
            if not k.startswith(OWN)
        }
        monitored = {
            k: float(v)
            for k, v in trainer.callback_metrics.items()
            if not k.startswith(OWN)
        }
        shown = {
            k for k in trainer.progress_bar_metrics if not k.startswith(OWN)
        }
        self.entries.append(
            (
                trainer.global_step,
                logged,
                monitored,
                shown,
                torch.get_rng_state().tolist()[:64],
            )
        )

    def on_validation_end(self, trainer, module):
        self.write(trainer, module)

    def on_train_epoch_end(self, trainer, module):
        self.write(trainer, module)


def everything(trainer, module, diary):
    state = {k: v.clone() for k, v in module.state_dict().items()}
    optimizer = trainer.optimizers[0].state_dict()
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002  (the generator that a disturbed run would move)
    generators = (torch.get_rng_state(), legacy, random.getstate())
    return state, optimizer, generators, module.train_losses, diary.entries


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(v, other[k]) for k, v in one.items()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(
            same(a, b) for a, b in zip(one, other, strict=True)
        )
    return one == other


def callbacks(tmp_path, module, **kwargs):
    options = {"matching": "both", "spec": module.spec(), "points": 3}
    return [
        LossBarrier("init", **{**options, **kwargs}),
        LossBarrier("previous", "none", points=2, prefix="barrier_previous"),
        CheckpointSnapshot(
            tmp_path / "snapshots", every_n_train_steps=2, every_n_epochs=1
        ),
    ]


def run(
    tmp_path,
    *,
    attach,
    module_kwargs=None,
    barrier_kwargs=None,
    extra=(),
    compiled="",
    **trainer_kwargs,
):
    seed_everything(7, verbose=False)
    module = Classifier(dropout=0.3, noise=True, **(module_kwargs or {}))
    attached = (
        callbacks(tmp_path, module, **(barrier_kwargs or {})) if attach else []
    )
    if compiled == "submodule":
        module.net = torch.compile(module.net, backend="eager")
    diary = Diary()
    trainer = trainer_in(
        tmp_path,
        callbacks=[*attached, *[make() for make in extra], diary],
        **trainer_kwargs,
    )
    trainer.fit(
        torch.compile(module, backend="eager")
        if compiled == "module"
        else module,
        train_loader(),
        val_loader(),
    )
    return everything(trainer, module, diary), attached


CONFIGURATIONS = {
    "plain": {},
    "sanity check": {"num_sanity_val_steps": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "accumulation with validation in the middle": {
        "accumulate_grad_batches": 3,
        "val_check_interval": 2,
    },
    "no inference mode": {"inference_mode": False},
    "limited validation": {"limit_val_batches": 2},
    "averaged weights": {"extra": (lambda: EMAWeightAveraging(decay=0.5),)},
    "batch norm": {"module_kwargs": {"batch_norm": True}},
    "batch norm re-estimated": {
        "module_kwargs": {"batch_norm": True},
        "barrier_kwargs": {"batch_norm_batches": 2},
    },
    "matched by activation": {
        "barrier_kwargs": {"matching": "activation", "spec": None},
    },
    "matched by correlation in bf16-mixed": {
        "barrier_kwargs": {"matching": "correlation", "spec": None},
        "precision": "bf16-mixed",
    },
    "matched by the best of three with batch norms": {
        "module_kwargs": {"batch_norm": True},
        "barrier_kwargs": {"matching": "auto", "spec": None},
        "extra": (lambda: EMAWeightAveraging(decay=0.5),),
    },
    "matched by the best of three in 64-true": {
        "barrier_kwargs": {"matching": "auto", "spec": None},
        "precision": "64-true",
        "num_sanity_val_steps": 2,
        "val_check_interval": 2,
    },
    "matched over all kinds": {
        "barrier_kwargs": {"kinds": "all", "spec": None},
    },
    "matched over all kinds by the best of three in bf16-mixed": {
        "module_kwargs": {"batch_norm": True},
        "barrier_kwargs": {"kinds": "all", "matching": "auto", "spec": None},
        "precision": "bf16-mixed",
    },
    "compiled submodule matched by the best of three": {
        "compiled": "submodule",
        "barrier_kwargs": {"matching": "auto", "spec": None},
    },
    "compiled submodule": {"compiled": "submodule"},
    "compiled module": {"compiled": "module"},
}


@pytest.mark.filterwarnings("ignore:LossBarrier could not prove")
@pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute"
)  # dynamo's own, while it traces training_step
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[pytest.mark.slow] if n == "compiled module" else []
        )
        for n in CONFIGURATIONS
    ],
)
def test_training_is_bitwise_the_same(tmp_path, name):
    configuration = CONFIGURATIONS[name]
    # torch.compile of a whole LightningModule cannot trace self.log (Lightning 2.6 with torch 2.13), callbacks or not.
    with torch._dynamo.config.patch(suppress_errors=name == "compiled module"):
        without, _ = run(tmp_path / "without", attach=False, **configuration)
        with_them, (barrier, previous, snapshots) = run(
            tmp_path / "with", attach=True, **configuration
        )
    for part, expected, got in zip(
        ("weights", "optimizer", "generators", "losses", "logs"),
        without,
        with_them,
        strict=True,
    ):
        assert same(expected, got), part
    assert barrier.measurements, (
        "nothing was measured, so the comparison shows nothing"
    )
    assert previous.measurements
    assert len(list(snapshots.folder.glob("*.ckpt"))) > 2
