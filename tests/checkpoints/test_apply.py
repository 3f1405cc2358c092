import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import same
from helpers.models import BatchNormCNN, mlp
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin.checkpoints.apply import apply_to_checkpoint
from lightning_rebasin.checkpoints.inputs import read_inputs
from lightning_rebasin.errors import (
    CheckpointError,
    ConfigurationError,
    EquivalenceError,
    OutputError,
)
from lightning_rebasin.symmetry import Permutation, PermutationSpec, infer_spec


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


def planted_order() -> tuple[nn.Sequential, Permutation]:
    """A network with one hidden layer, whose units are turned by one."""
    net = mlp(3, 4, 2)
    spec = infer_spec(net, torch.randn(2, 3))
    return net, Permutation(spec, {"0": torch.tensor([1, 2, 3, 0])})


def test_rows_and_columns_move_and_everything_else_stays(
    tmp_path: Path,
) -> None:
    net, order = planted_order()
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pt")
    (source,) = read_inputs([tmp_path / "a.pt"], order.spec.tensors)
    error = apply_to_checkpoint(source, order, tmp_path / "b.pt")
    # Without a module there is nothing to prove it on.
    assert error is None
    written = torch.load(tmp_path / "b.pt", weights_only=True)
    got, turned = written["model"], [1, 2, 3, 0]
    expected = {
        "module.0.weight": state["module.0.weight"][turned],
        "module.0.bias": state["module.0.bias"][turned],
        "module.2.weight": state["module.2.weight"][:, turned],
        "module.2.bias": state["module.2.bias"],
    }
    assert same(got, expected)
    history = written["lightning_rebasin"]
    assert history["method"] == "apply"
    assert history["permutations"][0]["0"].tolist() == turned
    digest = hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    assert history["inputs"] == [
        {"name": "a.pt", "sha256": digest, "format": "torch"}
    ]


def test_a_wrong_permutation_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    net, order = planted_order()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    # The bias is forgotten.
    wrong = PermutationSpec.from_table(
        {"0.weight": ("0", None), "2.weight": (None, "0")}, net.state_dict()
    )
    (source,) = read_inputs([tmp_path / "a.pt"], wrong.tensors)
    with pytest.raises(EquivalenceError):
        apply_to_checkpoint(
            source,
            Permutation(wrong, order.orders),
            tmp_path / "b.pt",
            module=net,
            example=torch.randn(2, 3),
        )
    assert not (tmp_path / "b.pt").exists()


def test_the_proof_is_about_the_files_weights_on_a_copy(
    tmp_path: Path,
) -> None:
    net, order = planted_order()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    (source,) = read_inputs([tmp_path / "a.pt"], order.spec.tensors)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(math.nan)
    # On a network of its own weights nothing could be compared.
    error = apply_to_checkpoint(
        source,
        order,
        tmp_path / "b.pt",
        module=net,
        example=torch.randn(2, 3),
    )
    assert error is not None and error < 1e-12
    assert all(parameter.isnan().all() for parameter in net.parameters())


def test_an_output_that_exists_is_only_replaced_by_force(
    tmp_path: Path,
) -> None:
    net, order = planted_order()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    (source,) = read_inputs([tmp_path / "a.pt"], order.spec.tensors)
    (tmp_path / "b.pt").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        apply_to_checkpoint(source, order, tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_text() == "mine"
    apply_to_checkpoint(source, order, tmp_path / "b.pt", force=True)
    assert torch.load(tmp_path / "b.pt", weights_only=True)


def test_the_run_goes_on_but_weights_beside_the_main_ones_do_not(
    tmp_path: Path,
) -> None:
    net, order = planted_order()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = net.state_dict()
    payload = {
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "current_model_state": state,
        "optimizer_states": [optimizer.state_dict()],
        "epoch": 3,
        "loops": {"fit_loop": {"x": 1}},
    }
    torch.save(payload, tmp_path / "a.ckpt")
    (source,) = read_inputs([tmp_path / "a.ckpt"], order.spec.tensors)
    apply_to_checkpoint(
        source, order, tmp_path / "b.ckpt", permute_optimizer=True
    )
    got = torch.load(tmp_path / "b.ckpt", weights_only=True)
    assert (got["epoch"], got["loops"]) == (3, {"fit_loop": {"x": 1}})
    assert got["pytorch-lightning_version"] == "2.1.0"
    assert "current_model_state" not in got
    moved = got["optimizer_states"][0]["state"][0]["momentum_buffer"]
    gradient = net.get_parameter("0.weight").grad
    assert gradient is not None
    assert torch.equal(moved, gradient[[1, 2, 3, 0]])


def test_batch_counters_that_the_file_lacks_are_not_added(
    tmp_path: Path,
) -> None:
    net = BatchNormCNN(2)
    spec = infer_spec(net, torch.randn(2, 3, 8, 8))
    state = net.state_dict()
    old = {n: t for n, t in state.items() if "num_batches" not in n}
    torch.save(old, tmp_path / "a.pt")
    (source,) = read_inputs([tmp_path / "a.pt"], spec.tensors)
    identity = Permutation.identity(spec)
    apply_to_checkpoint(source, identity, tmp_path / "b.pt")
    assert same(torch.load(tmp_path / "b.pt", weights_only=True), old)
