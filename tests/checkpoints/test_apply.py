import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import mlp
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.checkpoints.apply import apply_to_checkpoint
from lightning_rebasin.checkpoints.inputs import read_inputs
from lightning_rebasin.errors import CheckpointError, ConfigurationError
from lightning_rebasin.symmetry import Permutation, infer_spec


class TwoGroups(LightningModule):
    """Groups of parameters in another order than the state dict, and two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 6, 6, 2)
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        biases = [p for n, p in self.named_parameters() if n.endswith("bias")]
        weights = [
            p for n, p in self.named_parameters() if n.endswith("weight")
        ]
        groups: list[dict[str, Any]] = [
            {"params": biases, "lr": 0.02},
            {"params": weights},
        ]
        optimizer = torch.optim.Adam(groups, lr=0.01)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        }


def fit(
    module: TwoGroups,
    path: Path,
    epochs: int,
    tmp_path: Path,
    ckpt_path: Path | None = None,
) -> Trainer:
    g = torch.Generator().manual_seed(5)
    data = TensorDataset(
        torch.randn(40, 4, generator=g), torch.randn(40, 2, generator=g)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path, precision="64-true",
        )  # fmt: skip
        trainer.fit(
            module, DataLoader(data, batch_size=8), ckpt_path=ckpt_path
        )
        trainer.save_checkpoint(path)
    return trainer


def test_a_lightning_training_goes_on_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fit(TwoGroups(), tmp_path / "a.ckpt", 2, tmp_path)
    spec = infer_spec(TwoGroups())
    p = Permutation.random(spec, torch.Generator().manual_seed(1))
    source = read_inputs([tmp_path / "a.ckpt"], spec.tensors)[0]
    with pytest.raises(
        CheckpointError, match=r"2 groups of parameters.*--module"
    ):
        apply_to_checkpoint(
            source, p, tmp_path / "b.ckpt", permute_optimizer=True
        )
    assert not (tmp_path / "b.ckpt").exists()
    error = apply_to_checkpoint(
        source,
        p,
        tmp_path / "b.ckpt",
        module=TwoGroups(),
        permute_optimizer=True,
    )
    assert error is not None and error < 1e-12

    one, two = TwoGroups(), TwoGroups()
    fit(one, tmp_path / "a4.ckpt", 4, tmp_path, tmp_path / "a.ckpt")
    trainer = fit(two, tmp_path / "b4.ckpt", 4, tmp_path, tmp_path / "b.ckpt")
    assert trainer.global_step == 20
    expected = p.apply(one.state_dict())
    for name, tensor in two.state_dict().items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-9, atol=1e-11
        )
    rates = [
        torch.load(tmp_path / f"{n}4.ckpt")["lr_schedulers"][0]["_last_lr"]
        for n in "ab"
    ]
    assert rates[0] == rates[1] != [0.02, 0.01]


def test_without_the_option_training_starts_afresh(tmp_path: Path) -> None:
    fit(TwoGroups(), tmp_path / "a.ckpt", 1, tmp_path)
    spec = infer_spec(TwoGroups())
    source = read_inputs([tmp_path / "a.ckpt"], spec.tensors)[0]
    apply_to_checkpoint(
        source, Permutation.identity(spec), tmp_path / "b.ckpt"
    )
    assert (
        torch.load(tmp_path / "b.ckpt", weights_only=True)["optimizer_states"]
        == []
    )
    fresh = read_inputs([tmp_path / "b.ckpt"], spec.tensors)[0]
    with pytest.raises(ConfigurationError, match="no optimizer state"):
        apply_to_checkpoint(
            fresh,
            Permutation.identity(spec),
            tmp_path / "c.ckpt",
            permute_optimizer=True,
        )
