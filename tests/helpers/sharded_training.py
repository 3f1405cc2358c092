"""Two processes of FSDP write checkpoints as Lightning does: ``sharded_training.py FOLDER MEETING RANK``.

Lightning starts FSDP on GPUs only; what writes and reads the folders is its own code all the same, called with what it
needs of a strategy.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from helpers.leave import leave

RANKS = 2


class Net(LightningModule):
    """Seven units do not go into two equal parts."""

    def __init__(self, units: int = 7) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(3, units),
            nn.BatchNorm1d(units),
            nn.ReLU(),
            nn.Linear(units, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        result: Tensor = self.layers(x)
        return result


def net(seed: int) -> Net:
    """The network with the weights of a seed."""
    torch.manual_seed(seed)
    return Net().eval()


def write_folders(folder: Path) -> None:
    """Run the processes; what they print is shown if one of them fails."""
    with tempfile.TemporaryDirectory() as meeting:
        ranks = [_start(folder, meeting, rank) for rank in range(RANKS)]
        try:
            printed = [rank.communicate(timeout=240)[0] for rank in ranks]
        finally:
            # A rank whose partner failed would wait for it.
            for rank in ranks:
                rank.kill()
                rank.wait()
    codes = [rank.returncode for rank in ranks]
    assert codes == [0] * RANKS, "\n".join(printed)


def _start(folder: Path, meeting: str, rank: int) -> subprocess.Popen[str]:
    """One process.  They meet in a file: a free port could be taken before they use it."""
    arguments = [str(folder), f"{meeting}/place", str(rank)]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, *arguments],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _checkpoint(state: Any, optimizer: Any) -> dict[str, Any]:
    """What the trainer hands to the strategy."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"units": 7},
        "lr_schedulers": [],
        "state_dict": state,
        "optimizer_states": [optimizer],
    }


def _strategy(**more: Any) -> Any:
    rank = torch.distributed.get_rank()
    return SimpleNamespace(
        broadcast=lambda value: value, global_rank=rank, **more
    )


def _of_fsdp1(folder: Path, seed: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.api import (
        ShardedOptimStateDictConfig,
        ShardedStateDictConfig,
        StateDictType,
    )

    device = torch.device("cpu")
    model = FullyShardedDataParallel(
        net(seed), device_id=device, use_orig_params=True
    )
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    # Weights stay what they are; the optimizer gets a state.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    with FullyShardedDataParallel.state_dict_type(
        model,
        StateDictType.SHARDED_STATE_DICT,
        ShardedStateDictConfig(offload_to_cpu=True),
        ShardedOptimStateDictConfig(offload_to_cpu=True),
    ):
        state = model.state_dict()
        moments = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    FSDPStrategy.save_checkpoint(
        _strategy(_state_dict_type="sharded"),
        _checkpoint(state, moments),
        folder / f"fsdp-{seed}.ckpt",
    )


def _of_fsdp2(folder: Path, seed: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net(seed)
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    ModelParallelStrategy.save_checkpoint(
        _strategy(_save_distributed_checkpoint=True),
        _checkpoint(model.state_dict(), {}),
        folder / f"parallel-{seed}.ckpt",
    )


def _read_back(folder: Path) -> None:
    """If there is a merged folder: both ranks load it with torch's own reader and compare their parts."""
    from torch.distributed.checkpoint import load
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net(9)
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    state = model.state_dict()
    load({"state_dict": state}, checkpoint_id=folder / "merged")
    model.load_state_dict(state)
    expected = torch.load(folder / "expected.pt", weights_only=True)
    for name, tensor in model.state_dict().items():
        whole = (
            tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        )
        assert torch.equal(whole, expected[name]), name


def main() -> None:
    """One rank."""
    folder, meeting, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=RANKS,
    )
    if (folder / "merged").exists():
        _read_back(folder)
    else:
        for seed in (0, 1):
            _of_fsdp1(folder, seed)
            _of_fsdp2(folder, seed)
    leave()


if __name__ == "__main__":
    main()
