"""LandscapeFeatures on two processes (gloo on the CPU): the features of one process, from half of the batches each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
from lightning_rebasin import LandscapeFeatures

warnings.filterwarnings("ignore")
folder, devices = Path(sys.argv[1]), int(sys.argv[2])


class Still(Classifier):
    "Does not learn, so that both worlds see the same weights."

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def main():
    torch.set_num_threads(1)
    seed_everything(3, verbose=False)
    module = Still()
    state = module.state_dict()
    reference = {k: v + 0.3 * torch.randn_like(v) for k, v in state.items()}
    features = LandscapeFeatures(reference, limit_batches=100)
    strategy = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    trainer = trainer_in(folder, callbacks=[features], max_epochs=1, **strategy)
    # 47 samples: two processes get one of them twice, and count it once.
    validation = DataLoader(blobs(47, 1), batch_size=16 // devices)
    trainer.fit(module, DataLoader(blobs(64, 0), batch_size=16), validation)
    rank = trainer.global_rank
    (folder / f"rank{rank}.json").write_text(json.dumps(features.history.to_dict()))


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
        "PL_TORCH_DISTRIBUTED_BACKEND": "gloo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(devices)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for rank in range(devices):
        text = (folder / f"rank{rank}.json").read_text()
        found.append(json.loads(text)["rows"][0])
    return found


@pytest.mark.skipif(
    not torch.distributed.is_available(),
    reason="this torch was built without torch.distributed",
)
def test_two_processes_find_what_one_finds(tmp_path):
    (one,) = launch(tmp_path / "one", 1)
    first, second = launch(tmp_path / "two", 2)
    assert json.dumps(first) == json.dumps(second)
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for layer, part in one["parts"].items():
        own = first["parts"][layer]
        for name, value in part.items():
            expected = pytest.approx(value, rel=1e-4, nan_ok=True)
            assert own[name] == expected, (layer, name)
    assert one["parts"]["(all)"]["curvature"] != 0
