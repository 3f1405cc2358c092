"""Two processes (gloo on the CPU) see what one process sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.trainers import trainer_in
from lightning.pytorch import strategies
from lightning.pytorch.strategies import FSDPStrategy

from lightning_rebasin import CheckpointSnapshot, LossBarrier
from lightning_rebasin.callbacks.strategy import refuse_sharded
from lightning_rebasin.errors import ConfigurationError

TESTS = Path(__file__).parents[1]

#: Run in fresh processes: a spawned test process would import pytest's plugins, and fork is unsafe after threads.
SCRIPT = """
import json, sys, warnings
from pathlib import Path
import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader
from helpers.classifier import Classifier, blobs
from helpers.trainers import trainer_in
from lightning_rebasin import CheckpointSnapshot, LossBarrier

warnings.filterwarnings("ignore")
folder, devices, attach, samples = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True", int(sys.argv[4])


def main():
    torch.set_num_threads(1)
    seed_everything(3, verbose=False)
    module = Classifier(batch_norm=True)
    state = module.state_dict()
    reference = {k: v + 0.3 * torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
    reference["net.norm.running_var"].abs_().add_(0.1)
    own = []
    if attach:
        own = [
            LossBarrier(reference, "both", spec=module.spec(), points=3),
            LossBarrier("previous", "none", points=2, prefix="barrier_previous"),
            CheckpointSnapshot(folder / "snapshots", every_n_steps=2),
        ]
    # Unshuffled and the same global batch, so that one and two processes train alike.
    train = DataLoader(blobs(64, 0), batch_size=16 // devices)
    strategy = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    trainer = trainer_in(folder, callbacks=own, **strategy)
    trainer.fit(module, train, DataLoader(blobs(samples, 1), batch_size=16 // devices))
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    weights = {k: v.tolist() for k, v in module.state_dict().items()}
    generator = torch.get_rng_state().tolist()
    curves = [m.curves[label].values for m in (own[0].measurements if own else []) for label in ("naive", "matched")]
    out = {"metrics": metrics, "weights": weights, "generator": generator, "curves": [dict(c) for c in curves]}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(out))


main()
"""


def launch(folder, devices, *, attach=True, samples=48):
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    environment |= {"PL_TORCH_DISTRIBUTED_BACKEND": "gloo", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, str(script), str(folder), str(devices), str(attach), str(samples)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_two_processes_measure_what_one_measures_and_train_as_without(tmp_path):
    (one,) = launch(tmp_path / "one", 1)
    two = launch(tmp_path / "two", 2)
    bare = launch(tmp_path / "bare", 2, attach=False)
    names = {name for name in one["metrics"] if name.startswith("barrier")}
    assert {"barrier/val_loss", "barrier/val_auroc/matched", "barrier_previous/val_loss"} <= names
    # The values are the same on both processes, and so are the metrics that monitors see.
    assert {n: two[0]["metrics"][n] for n in names} == {n: two[1]["metrics"][n] for n in names}
    assert two[0]["curves"] == two[1]["curves"]
    # Training is bitwise the same with and without the callbacks, on both processes.
    for with_them, without in zip(two, bare, strict=True):
        assert with_them["weights"] == without["weights"]
        assert with_them["generator"] == without["generator"]
        assert {k: v for k, v in with_them["metrics"].items() if not k.startswith("barrier")} == without["metrics"]
    assert (tmp_path / "two" / "logs" / "version_0" / "barrier.csv").exists()
    assert len(list((tmp_path / "two" / "snapshots").glob("*.ckpt"))) == 5


def test_one_and_two_processes_give_the_same_barrier(tmp_path):
    """No training (learning rate 0 would still move batch norms), so both see the very same weights: validate only."""
    script = SCRIPT.replace("trainer.fit(module, train, ", "trainer.validate(module, ")
    script = script.replace('LossBarrier("previous", "none", points=2, prefix="barrier_previous"),', "")
    results = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        (folder / "script.py").write_text(script)
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, str(folder / "script.py"), str(folder), str(devices), "True", "48"]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        results[devices] = json.loads((folder / "rank0.json").read_text())
    for one, two in zip(results[1]["curves"], results[2]["curves"], strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"val_largest"}:  # a maximum over batches depends on the batches by definition
            assert two[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_sharded_strategies_are_refused_with_advice(name):
    class FakeTrainer:
        strategy = object.__new__(getattr(strategies, name))  # DeepSpeed itself is not installed

    for callback in (LossBarrier, CheckpointSnapshot):
        with pytest.raises(ConfigurationError, match=rf"{name} shards.*measure_barrier"):
            refuse_sharded(FakeTrainer(), callback.__name__)


def test_sharding_is_refused_in_setup(tmp_path):
    trainer = trainer_in(tmp_path, callbacks=[LossBarrier("init", "none"), CheckpointSnapshot(tmp_path / "s")])
    trainer._accelerator_connector.strategy = object.__new__(FSDPStrategy)
    for callback in trainer.callbacks[:2]:
        with pytest.raises(ConfigurationError, match="FSDPStrategy"):
            callback.setup(trainer, Classifier(), "fit")
