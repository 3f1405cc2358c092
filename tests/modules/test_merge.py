"""MergeModule: one fit, and everything a trainer may ask of a module."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import FEATURES, Classifier
from helpers.merging import State, fit, held_out, held_out_loss, make
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger

from lightning_rebasin.errors import (
    ConfigurationError,
    EquivalenceError,
    OutputError,
)
from lightning_rebasin.matching import WeightMatcher
from lightning_rebasin.merging import interpolate
from lightning_rebasin.modules import MergeModule
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def test_a_permuted_copy_is_found_and_merging_it_changes_nothing(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    a = ends[0]
    spec = infer_spec(Classifier(hidden=16), torch.zeros(2, FEATURES))
    planted = Permutation.random(spec, torch.Generator().manual_seed(3))
    module = make(
        (
            a,
            planted.inverse().apply(
                {n: t for n, t in a.items() if n in spec.tensors} | {}
            ),
        )
    )
    fit(module, tmp_path, max_epochs=1)
    assert module.permutation == planted
    for name, tensor in module.merged_state_dict().items():
        torch.testing.assert_close(tensor, a[name])


def test_the_best_candidate_is_no_worse_than_plain_weight_matching(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    module = make(ends)
    trainer = fit(module, tmp_path, max_epochs=6)
    start = (
        WeightMatcher(module.spec, ends[1])
        .match(ends[0], Permutation.identity(module.spec), seed=0)
        .permutation
    )
    start_loss = held_out_loss(
        Classifier(hidden=16), interpolate(ends[0], start.apply(ends[1]), 0.5)
    )
    merged_loss = held_out_loss(
        Classifier(hidden=16), module.merged_state_dict()
    )
    assert merged_loss <= start_loss + 1e-6
    # The score is that of the whole held-out set, smaller last batch included.
    assert float(
        trainer.callback_metrics["best_midpoint_loss"]
    ) == pytest.approx(merged_loss, rel=1e-5)


def test_logs_what_it_promises_and_redirects_the_users_own_log(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    trainer = fit(
        make(ends), tmp_path, logger=CSVLogger(tmp_path), max_epochs=1
    )
    logged = set(trainer.callback_metrics)
    assert {
        "midpoint_loss",
        "objective",
        "moved",
        "projection_seconds",
    } <= logged
    assert {
        "val_midpoint_loss",
        "best_midpoint_loss",
        "midpoint/train_loss",
    } <= logged
    assert torch.equal(
        trainer.callback_metrics["midpoint/train_loss"],
        trainer.callback_metrics["midpoint_loss_step"],
    )


def test_checkpoint_loads_with_weights_only_and_holds_no_weights_but_the_free_ones(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    module = make(ends)
    trainer = fit(
        module,
        tmp_path,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(tmp_path, filename="merge")],
    )
    content = torch.load(tmp_path / "merge.ckpt", weights_only=True)
    assert set(content["state_dict"]) == {f"free.{i}" for i in range(4)}
    orders = content["lightning_rebasin_merge"]["best"]["orders"]
    assert all(order.dtype == torch.long for order in orders.values())
    model = Classifier(hidden=16)
    loaded = MergeModule.load_from_checkpoint(
        tmp_path / "merge.ckpt",
        model=model,
        reference=ends[0],
        source=ends[1],
        weights_only=True,
    )
    assert loaded.permutation == module.permutation
    assert all(
        torch.equal(t, module.merged_state_dict()[n])
        for n, t in loaded.merged_state_dict().items()
    )
    assert trainer.checkpoint_callback is not None


@pytest.mark.parametrize(
    "options",
    [{}, {"lam": (0.3, 0.7), "stands_for": "midpoint", "project_every": 4}],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    ends: tuple[State, State], tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = make(ends, **options)
    fit(whole, tmp_path, max_epochs=4, shuffle=False)
    saving = ModelCheckpoint(tmp_path, filename="half")
    first = make(ends, **options)
    fit(
        first,
        tmp_path,
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[saving],
        shuffle=False,
    )
    resumed = make(ends, **options)
    fit(
        resumed,
        tmp_path,
        max_epochs=4,
        shuffle=False,
        ckpt_path=str(tmp_path / "half.ckpt"),
    )
    for mine, theirs in zip(resumed.free, whole.free, strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.permutation == whole.permutation


def test_same_seed_same_result(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    runs = []
    for _ in range(2):
        seed_everything(5, verbose=False)
        runs.append(make(ends, lam=(0.2, 0.8)))
        fit(runs[-1], tmp_path)
    assert all(
        torch.equal(one, two)
        for one, two in zip(runs[0].free, runs[1].free, strict=True)
    )


def test_projects_once_per_optimizer_step_and_every_kth_if_asked(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    """6 batches an epoch, 2 epochs."""
    for options, expected in (({}, 12), ({"accumulate_grad_batches": 3}, 4)):
        assert _count_projections(make(ends), tmp_path, **options) == expected
    assert _count_projections(make(ends, project_every=5), tmp_path) == 3


def _count_projections(
    module: MergeModule, folder: Path, **options: Any
) -> int:
    steps = []
    real = module._free_parameters.project

    def spy(start: Permutation, free: Any, step: int, device: Any) -> Any:
        steps.append(step)
        return real(start, free, step, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._free_parameters, "project", spy)
        fit(module, folder, max_epochs=2, **options)
    return len(steps)


def test_optimizer_scheduler_and_early_stopping(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    stop = EarlyStopping("val_midpoint_loss", patience=1, min_delta=10.0)
    module = make(
        ends,
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        lr_scheduler=partial(
            ReduceLROnPlateau,
            monitor="val_midpoint_loss",
            factor=0.5,
            patience=0,
            threshold=10.0,
            threshold_mode="abs",
        ),
    )
    trainer = fit(module, tmp_path, max_epochs=9, callbacks=[stop])
    assert isinstance(trainer.optimizers[0], torch.optim.AdamW)
    assert trainer.current_epoch == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)


def test_gradient_clipping_bounds_the_step(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    module = make(ends, optimizer=partial(torch.optim.SGD, lr=1.0))
    fit(module, tmp_path, max_steps=1, gradient_clip_val=1e-3)
    steps = [
        p.detach() - ends[0][name]
        for name, p in zip(module.ends.parameters, module.free, strict=True)
    ]
    assert torch.cat(
        [step.flatten() for step in steps]
    ).norm() == pytest.approx(1e-3, rel=1e-3)


def test_default_optimizer_is_the_papers(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    module = MergeModule(
        Classifier(hidden=16),
        *ends,
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1),
    )
    group = fit(module, tmp_path, max_epochs=1).optimizers[0].param_groups[0]
    assert (group["initial_lr"], group["lr"], group["momentum"]) == (
        0.01,
        pytest.approx(0.001),
        0.9,
    )


def test_mixed_precision_does_not_round_the_projection(
    ends: tuple[State, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(ends)
    targets = []
    real = module._free_parameters.project

    def spy(start: Permutation, free: Any, step: int, device: Any) -> Any:
        result = real(start, free, step, device)
        target = dict(
            zip(
                module.ends.parameters,
                (p.detach().clone() for p in module.free),
                strict=True,
            )
        )
        targets.append((target, start, step, result[0]))
        return result

    monkeypatch.setattr(module._free_parameters, "project", spy)
    fit(module, tmp_path, precision="bf16-mixed")
    for target, start, step, orders in targets:
        expected = (
            WeightMatcher(module.spec, ends[1])
            .match({**ends[0], **target}, start, seed=step)
            .permutation
        )
        assert all(
            torch.equal(order, orders[group])
            for group, order in expected.orders.items()
        )
    assert module.free[0].dtype == torch.float32


def test_half_precision_free_parameters_are_refused(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="bf16-mixed"):
        fit(make(ends), tmp_path, precision="bf16-true")


def test_double_precision(ends: tuple[State, State], tmp_path: Path) -> None:
    module = make(ends)
    fit(module, tmp_path, precision="64-true", max_epochs=1)
    assert module.merged_state_dict()["net.fc1.weight"].dtype == torch.float64


def test_export_writes_proved_weights_only(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    module = make(ends)
    fit(module, tmp_path, max_epochs=1)
    module.export(tmp_path / "merged.ckpt")
    content = torch.load(tmp_path / "merged.ckpt", weights_only=True)
    assert all(
        torch.equal(t, content["state_dict"][n])
        for n, t in module.merged_state_dict().items()
    )
    assert content["lightning_rebasin"]["equivalence_error"] < 1e-8
    with pytest.raises(OutputError, match="force"):
        module.export(tmp_path / "merged.ckpt")
    module.export(tmp_path / "merged.ckpt", force=True)


def test_export_refuses_a_spec_that_is_wrong(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    wrong = PermutationSpec.from_table(
        {"net.fc1.weight": ("h", None), "net.fc1.bias": ("h",)}, ends[0]
    )
    module = make(ends, spec=wrong)
    fit(module, tmp_path, max_epochs=1)
    with pytest.raises(EquivalenceError):
        module.export(tmp_path / "merged.ckpt")
    assert not (tmp_path / "merged.ckpt").exists()


def test_validate_alone_scores_the_start(ends: tuple[State, State]) -> None:
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make(ends, init="identity")
        result = trainer.validate(module, held_out(), verbose=False)
    expected = held_out_loss(Classifier(hidden=16), interpolate(*ends, 0.5))
    assert result[0]["val_midpoint_loss"] == pytest.approx(expected, rel=1e-5)


def test_nothing_learned_yet(ends: tuple[State, State]) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.fit"):
        _ = make(ends).permutation
