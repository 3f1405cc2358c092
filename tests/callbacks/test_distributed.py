"""Two processes (gloo on the CPU) see what one process sees, and train as they would without the callbacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.trainers import trainer_in
from lightning.pytorch.strategies import FSDPStrategy

from lightning_rebasin import CheckpointSnapshot, LossBarrier
from lightning_rebasin.errors import ConfigurationError

TESTS = Path(__file__).parents[1]
#: 47 samples are padded to 48; 33 to 34, where the last batch of one process is nothing but the repeated sample.
SAMPLES = (48, 33, 47)

#: Run in fresh processes: a spawned test process would import pytest's plugins, and fork is unsafe after threads.
SCRIPT = f"""
import copy, json, sys, warnings
from pathlib import Path
import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader
from helpers.classifier import Classifier, blobs
from helpers.trainers import trainer_in
from lightning_rebasin import CheckpointSnapshot, LossBarrier

warnings.filterwarnings("ignore")
folder, devices = Path(sys.argv[1]), int(sys.argv[2])
strategy = {{"strategy": "ddp", "devices": devices}} if devices > 1 else {{}}


def curves_of(barrier):
    return [dict(m.curves[label].values) for m in barrier.measurements for label in ("naive", "matched")]


def validated(module, reference):
    "Barriers of the very same weights on validation sets of several sizes."
    found = {{}}
    for samples in {SAMPLES}:
        barrier = LossBarrier(reference, "both", spec=module.spec(), points=3)
        trainer = trainer_in(folder / str(samples), callbacks=[barrier], **strategy)
        loader = DataLoader(blobs(samples, 1), batch_size=16 // devices)
        trainer.validate(copy.deepcopy(module), loader, verbose=False)
        found[samples] = curves_of(barrier)
    return found


def fitted(module, reference, *, attach):
    "What a training leaves behind."
    seed_everything(5, verbose=False)
    own = []
    if attach:
        own = [
            LossBarrier(reference, "both", spec=module.spec(), points=3),
            LossBarrier("previous", "none", points=2, prefix="barrier_previous"),
            LossBarrier(reference, "auto", points=3, prefix="barrier_auto"),
            CheckpointSnapshot(folder / "snapshots", every_n_train_steps=2),
        ]
    trainer = trainer_in(folder / f"attach-{{attach}}", callbacks=own, **strategy)
    loader = DataLoader(blobs(48, 1), batch_size=16 // devices)
    trainer.fit(module, DataLoader(blobs(64, 0), batch_size=16 // devices), loader)
    return {{
        "metrics": {{k: float(v) for k, v in trainer.callback_metrics.items()}},
        "weights": {{k: v.tolist() for k, v in module.state_dict().items()}},
        "generator": torch.get_rng_state().tolist(),
        "curves": curves_of(own[0]) if own else [],
        "auto": [[m.matching, m.moved, dict(m.scores)] for m in own[2].measurements] if own else [],
    }}


def main():
    torch.set_num_threads(1)
    seed_everything(3, verbose=False)
    module = Classifier(batch_norm=True)
    state = module.state_dict()
    reference = {{k: v + 0.3 * torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}}
    reference["net.norm.running_var"].abs_().add_(0.1)
    out = {{"validated": validated(module, reference)}}
    if devices > 1:
        out["without"] = fitted(copy.deepcopy(module), reference, attach=False)
        out["with"] = fitted(copy.deepcopy(module), reference, attach=True)
    rank = torch.distributed.get_rank() if devices > 1 else 0
    (folder / f"rank{{rank}}.json").write_text(json.dumps(out))


main()
"""


def launch(folder, devices):
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {
        "PL_TORCH_DISTRIBUTED_BACKEND": "gloo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    arguments = [sys.executable, str(script), str(folder), str(devices)]
    done = subprocess.run(
        arguments,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        json.loads((folder / f"rank{rank}.json").read_text())
        for rank in range(devices)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process and what two processes found."""
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    folder = tmp_path_factory.mktemp("runs")
    return folder, launch(folder / "one", 1), launch(folder / "two", 2)


def test_training_is_bitwise_the_same_on_both_processes(runs):
    _, _, two = runs
    for with_them, without in (
        (process["with"], process["without"]) for process in two
    ):
        assert with_them["weights"] == without["weights"]
        assert with_them["generator"] == without["generator"]
        assert {
            k: v
            for k, v in with_them["metrics"].items()
            if not k.startswith("barrier")
        } == without["metrics"]


def test_monitors_see_the_same_numbers_on_both_processes(runs):
    folder, _, two = runs
    first, second = (process["with"] for process in two)
    names = {name for name in first["metrics"] if name.startswith("barrier")}
    assert {
        "barrier/val_loss",
        "barrier/val_auroc/matched",
        "barrier_previous/val_loss",
    } <= names
    assert {n: first["metrics"][n] for n in names} == {
        n: second["metrics"][n] for n in names
    }
    assert first["curves"] == second["curves"]
    assert first["auto"] == second["auto"]
    assert len(first["auto"]) == 2
    for method, moved, scores in first["auto"]:
        assert scores[method] == min(scores.values())
        assert 0 <= moved <= 1
    assert (
        folder / "two" / "attach-True" / "logs" / "version_0" / "barrier.csv"
    ).exists()
    assert len(list((folder / "two" / "snapshots").glob("*.ckpt"))) == 5


@pytest.mark.parametrize("samples", SAMPLES)
def test_two_processes_measure_what_one_measures(runs, samples):
    _, (one,), (two, _) = runs
    expected, found = (
        one["validated"][str(samples)],
        two["validated"][str(samples)],
    )
    assert found[0]["val_count"][0] == samples
    for curve, other in zip(expected, found, strict=True):
        assert curve.keys() == other.keys()
        for name in curve.keys() - {
            "val_largest"
        }:  # a maximum over batches depends on the batches by definition
            assert other[name] == pytest.approx(curve[name], rel=1e-5), name


def test_sharding_is_refused_in_setup(tmp_path):
    trainer = trainer_in(
        tmp_path,
        callbacks=[
            LossBarrier("init", "none"),
            CheckpointSnapshot(tmp_path / "s"),
        ],
    )
    trainer._accelerator_connector.strategy = object.__new__(FSDPStrategy)
    for callback in trainer.callbacks[:2]:
        with pytest.raises(ConfigurationError, match="FSDPStrategy"):
            callback.setup(trainer, Classifier(), "fit")
