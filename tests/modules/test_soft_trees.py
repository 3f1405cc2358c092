"""SoftTreeModule: it trains, its files merge, its barrier is watched, MergeModule learns the order of its trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.quiet import fit_quietly, quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin import (
    LossBarrier,
    MergeModule,
    SoftTreeModule,
    infer_spec,
    match_weights,
    measure_barrier,
    merge_checkpoints,
)
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry import Transform


def loader(count: int, seed: int, *, values: bool = False) -> DataLoader[Any]:
    """Two classes (or values) that a plane does not separate."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    target: Tensor = x[:, 0] * x[:, 1]
    if not values:
        target = (target > 0).long()
    return DataLoader(TensorDataset(x, target), batch_size=64)


def made(seed: int = 0, **options: Any) -> SoftTreeModule:
    torch.manual_seed(seed)
    return SoftTreeModule(
        depth=2, trees=32, inputs=4, learning_rate=0.02, **options
    )


def trained(folder: Path, seed: int = 0, **options: Any) -> SoftTreeModule:
    module = made(seed, **options)
    values = options.get("task") == "regression"
    trainer = quiet_trainer(folder, max_epochs=25)
    train, val = loader(512, 1, values=values), loader(256, 2, values=values)
    fit_quietly(trainer, module, train, val)
    return module


def test_it_learns_a_classification(tmp_path):
    module = trained(tmp_path)
    (scores,) = quiet_trainer(tmp_path).test(
        module, loader(256, 3), verbose=False
    )
    assert set(scores) == {"test_loss", "test_accuracy"}
    assert scores["test_accuracy"] > 0.9


def test_it_learns_a_regression(tmp_path):
    module = trained(tmp_path, task="regression", outputs=1)
    (scores,) = quiet_trainer(tmp_path).test(
        module, loader(256, 3, values=True), verbose=False
    )
    assert set(scores) == {"test_loss", "test_error"}
    # always saying the mean would cost 1
    assert scores["test_loss"] < 0.5


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_regression_takes_columns_or_rows():
    module = made(task="regression", outputs=1)
    x, y = torch.randn(6, 4), torch.randn(6)
    a = module.training_step((x, y), 0)
    assert torch.equal(a, module.training_step((x, y[:, None]), 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ranking"}, "task='ranking' is unknown"),
        ({"outputs": 1}, "at least 2 outputs"),
        ({"kind": "round"}, "not a kind of soft tree"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigurationError, match=message):
        made(**options)


def test_hyperparameters_make_it_again(tmp_path):
    module = made()
    again = SoftTreeModule(**module.hparams)
    assert again.state_dict().keys() == module.state_dict().keys()


def test_matching_with_flips_lowers_the_barrier(tmp_path):
    ends = [trained(tmp_path, seed, kind="non_oblivious") for seed in (0, 1)]
    a, b = (end.state_dict() for end in ends)
    heights = []
    for kinds in ("permutation", "all"):
        spec = infer_spec(ends[0], kinds=kinds)
        moved = match_weights(spec, a, b).transform.apply(b)
        curve = measure_barrier(ends[0], a, moved, loader(256, 2), points=11)
        heights.append(curve.height("val_loss"))
    assert heights[1] < heights[0]


def test_the_barrier_is_watched_while_it_trains(tmp_path):
    reference = tmp_path / "reference.pt"
    torch.save(trained(tmp_path).state_dict(), reference)
    module = made(1)
    watch = LossBarrier(reference=reference, matching="weight")
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[watch])
    fit_quietly(trainer, module, loader(128, 1), loader(128, 2))
    names = trainer.callback_metrics
    assert "barrier/val_loss/matched" in names, sorted(names)


def test_files_of_one_ensemble_in_another_order_merge_to_itself(tmp_path):
    module = trained(tmp_path)
    spec = infer_spec(module)
    order = Transform.random(spec, torch.Generator().manual_seed(0))
    state = module.state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save(order.apply(state), tmp_path / "b.pt")
    merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "merged.pt",
        module=made(),
        data=[torch.randn(64, 4)],
    )
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    merged = merged.get("state_dict", merged)
    for name, tensor in state.items():
        torch.testing.assert_close(merged[name], tensor)


def test_merge_module_learns_the_order_of_the_trees(tmp_path):
    module = trained(tmp_path)
    spec = infer_spec(module)
    planted = Transform.random(spec, torch.Generator().manual_seed(3))
    state = module.state_dict()
    merger = MergeModule(made(), state, planted.inverse().apply(state))
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    fit_quietly(trainer, merger, loader(128, 1), loader(128, 2))
    assert merger.permutation == planted
