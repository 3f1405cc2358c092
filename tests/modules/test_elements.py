"""Learning elements of continuous groups: the start is kept, the function of the source stays, resuming goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin import MergeModule, check_equivalence, infer_spec
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.elements import LearnedElements
from lightning_rebasin.symmetry import Transform

KINDS = "all"


def network(seed: int) -> nn.Sequential:
    """Low-rank factors (an invertible map between them) and ReLU units (scales)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 3, bias=False),
        nn.Linear(3, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


G = torch.Generator().manual_seed(0)
X = torch.randn(64, 4, generator=G)
Y = torch.stack([X[:, 0] * X[:, 1], X[:, 2].relu()], 1)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=16)


def loss(net: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return F.mse_loss(net(batch[0]), batch[1])


def make(**options: object) -> MergeModule:
    a, b = network(1), network(2)
    return MergeModule(
        network(0),
        a.state_dict(),
        b.state_dict(),
        loss=loss,
        kinds=KINDS,
        lam=(0.4, 0.6),
        **options,  # type: ignore[arg-type] - whatever a test changes
    )


def trainer(folder: Path, epochs: int) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )


def midpoint_loss(module: MergeModule, transform: Transform) -> float:
    net = network(0)
    net.load_state_dict(module.ends.midpoint(transform, 0.5))
    with torch.no_grad():
        return float(loss(net, [X, Y]))


def test_the_first_step_is_the_start() -> None:
    net = network(2)
    spec = infer_spec(net, X[:3], kinds=KINDS)
    start = Transform.random(spec, torch.Generator().manual_seed(1))
    learned = LearnedElements(spec, start)
    started = start.apply(net.state_dict())
    for name, tensor in learned.aligned(started).items():
        torch.testing.assert_close(tensor, started[name])
    assert learned.transform() == start


def test_learning_ends_no_worse_than_where_it_could_start(
    tmp_path: Path,
) -> None:
    module = make()
    trainer(tmp_path, 5).fit(module, LOADER, LOADER)
    starts = module._start.transforms(module.trainer)
    best = min(midpoint_loss(module, start) for start in starts)
    assert midpoint_loss(module, module.transform) <= best + 1e-6
    # Something was learned, and it is still the source's function.
    assert module.transform not in starts
    assert check_equivalence(network(2), module.transform, X) < 1e-8
    with pytest.raises(
        ConfigurationError, match=r"use merge_module\.transform"
    ):
        _ = module.permutation


def test_an_exported_merge_loads_strictly_into_the_plain_network(
    tmp_path: Path,
) -> None:
    module = make()
    trainer(tmp_path, 2).fit(module, LOADER, LOADER)
    module.export(tmp_path / "merged.pt")
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    plain = network(0)
    plain.load_state_dict(merged.get("state_dict", merged), strict=True)
    wanted = midpoint_loss(module, module.transform)
    with torch.no_grad():
        assert float(loss(plain, [X, Y])) == pytest.approx(wanted, rel=1e-5)


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = make()
    trainer(tmp_path / "whole", 4).fit(whole, LOADER, LOADER)
    half = make()
    first = trainer(tmp_path / "half", 2)
    first.fit(half, LOADER, LOADER)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make()
    trainer(tmp_path / "half", 4).fit(
        resumed, LOADER, LOADER, ckpt_path=tmp_path / "half.ckpt"
    )
    assert whole.elements is not None
    assert resumed.elements is not None
    for a, b in zip(
        whole.elements.latents, resumed.elements.latents, strict=True
    ):
        torch.testing.assert_close(a, b)
