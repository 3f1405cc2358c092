"""MergeModule: one fit, and everything a trainer may ask of a module."""

from __future__ import annotations

import copy
import itertools
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import CLASSES, FEATURES, Classifier, blobs
from helpers.models import BatchNormCNN, mlp
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
)
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_rebasin.errors import (
    ConfigurationError,
    EquivalenceError,
    NonFiniteError,
    OutputError,
    StateDictError,
)
from lightning_rebasin.matching import WeightMatcher, match_activations
from lightning_rebasin.merging import interpolate, reset_batch_norm
from lightning_rebasin.modules import MergeModule
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

State = dict[str, Tensor]


def train_data(*, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        blobs(192, 0), batch_size=32, shuffle=shuffle, generator=generator
    )


def held_out() -> DataLoader[tuple[Tensor, ...]]:
    """The last batch is smaller than the others."""
    return DataLoader(blobs(50, 1), batch_size=16)


def trained(model: nn.Module, seed: int, steps: int = 60) -> State:
    """The weights of a model after a short training from another start."""
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for x, y in itertools.islice(itertools.cycle(train_data()), steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


@pytest.fixture(scope="module")
def ends() -> tuple[State, State]:
    model = Classifier(hidden=16)
    return trained(model, 1), trained(model, 2)


def make(ends: tuple[State, State], **options: Any) -> MergeModule:
    options.setdefault(
        "optimizer", partial(torch.optim.SGD, lr=1.0, momentum=0.9)
    )
    return MergeModule(Classifier(hidden=16), *ends, **options)


def fit(
    module: MergeModule,
    folder: Path,
    *,
    ckpt_path: str | None = None,
    shuffle: bool = True,
    **options: Any,
) -> Trainer:
    defaults = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
    }
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    trainer = Trainer(
        **{
            **defaults,
            **quiet,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **options,
        }
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*"
        )
        warnings.filterwarnings("ignore", message=".*is deprecated.*")
        warnings.filterwarnings(
            "ignore", message=".*callbacks used to create the checkpoint.*"
        )
        trainer.fit(
            module,
            train_data(shuffle=shuffle),
            held_out(),
            ckpt_path=ckpt_path,
        )
    return trainer


def held_out_loss(model: nn.Module, weights: State) -> float:
    model = copy.deepcopy(model).eval()
    model.load_state_dict(weights, strict=False)
    x, y = next(iter(DataLoader(blobs(50, 1), batch_size=50)))
    with torch.no_grad():
        return float(cross_entropy(model(x), y))


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


def test_the_users_model_is_left_alone(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    model = Classifier(hidden=16)
    before = copy.deepcopy(model.state_dict())
    fit(MergeModule(model, *ends), tmp_path, max_epochs=1)
    assert all(
        torch.equal(t, before[n]) for n, t in model.state_dict().items()
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.train_losses
    assert model._trainer is None


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
    real = module._project_on_rank_zero
    module._project_on_rank_zero = lambda step, start: (
        steps.append(step),
        real(step, start),
    )[1]
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
    ends: tuple[State, State], tmp_path: Path
) -> None:
    module = make(ends)
    targets = []
    real = module._project_on_rank_zero

    def spy(step: int, start: Permutation) -> Any:
        result = real(step, start)
        target = dict(
            zip(
                module.ends.parameters,
                (p.detach().clone() for p in module.free),
                strict=True,
            )
        )
        targets.append((target, start, step, result[0]))
        return result

    module._project_on_rank_zero = spy
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


class BatchNormNet(LightningModule):
    """Images of noise around one mean per class; no example inputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = BatchNormCNN(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])


def test_batch_norm_statistics_are_those_of_the_midpoint(
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(8, 3, 8, 8, generator=generator),
            torch.randint(CLASSES, (8,), generator=generator),
        )
        for _ in range(6)
    ]
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = BatchNormNet()
        for x, _ in batches:
            model(x)
        states.append(copy.deepcopy(model.state_dict()))
    module = MergeModule(BatchNormNet(), *states, batch_norm_batches=4)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(
            module,
            DataLoader(batches, batch_size=None),
            DataLoader(batches[:2], batch_size=None),
        )
    merged = module.merged_state_dict()
    model = BatchNormNet()
    model.load_state_dict(
        interpolate(states[0], module.permutation.apply(states[1]), 0.5)
    )
    expected = reset_batch_norm(model, batches[-4:]).state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name])
    # The score belongs to these very weights.
    model.load_state_dict(merged)
    with torch.no_grad():
        loss = torch.stack(
            [cross_entropy(model.eval()(x), y) for x, y in batches[:2]]
        ).mean()
    assert float(
        trainer.callback_metrics["best_midpoint_loss"]
    ) == pytest.approx(float(loss), rel=1e-5)


class StepOnly(Classifier):
    """Its forward takes what is in no batch, so only its steps can be run on one."""

    def forward(self, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        return self.net(x) * scale

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        return cross_entropy(self(batch[0], 2.0), batch[1])

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:  # type: ignore[override]
        self.log("val_loss", cross_entropy(self(batch[0], 2.0), batch[1]))


def test_a_module_without_usable_forward_is_traced_and_proved_through_its_step(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    model = StepOnly(hidden=16)
    model.example_input_array = None
    module = MergeModule(model, *ends)
    fit(module, tmp_path, max_epochs=1)
    assert [group.size for group in module.spec.groups.values()] == [16]
    module.export(tmp_path / "merged.ckpt")
    merged = torch.load(tmp_path / "merged.ckpt", weights_only=True)[
        "state_dict"
    ]
    assert torch.equal(
        merged["net.fc1.weight"], module.merged_state_dict()["net.fc1.weight"]
    )


class Offset(Classifier):
    """Adds a fixed table to the hidden units: shared by all models, so it must not move."""

    def __init__(self) -> None:
        super().__init__(hidden=16)
        self.register_buffer("table", torch.arange(16.0).sin())

    def forward(self, x: Tensor) -> Tensor:
        return self.net.fc2(torch.relu(self.net.fc1(x) + self.table))


def test_buffers_that_both_ends_share_stay(tmp_path: Path) -> None:
    states = [copy.deepcopy(Offset().state_dict()) for _ in range(2)]
    full = infer_spec(Offset(), torch.zeros(2, FEATURES))
    assert "table" in full.maps
    start = Permutation.random(full, torch.Generator().manual_seed(0))
    module = MergeModule(Offset(), *states, spec=full, init=start)
    fit(module, tmp_path, max_epochs=1)
    assert not module.spec.groups
    assert torch.equal(module.merged_state_dict()["table"], states[0]["table"])
    other = {**states[1], "table": states[1]["table"] + 1}
    assert [
        g.size
        for g in MergeModule(
            Offset(), states[0], other, spec=full
        ).spec.groups.values()
    ] == [16]


def test_any_module_with_a_loss_function(tmp_path: Path) -> None:
    model = mlp(FEATURES, 8, CLASSES)
    ends = trained(model, 1), trained(model, 2)
    module = MergeModule(
        model,
        *ends,
        loss=lambda net, batch: cross_entropy(net(batch[0]), batch[1]),
    )
    fit(module, tmp_path, max_epochs=1)
    assert len(module.permutation.orders) == 1
    module.export(tmp_path / "merged.pt")
    model.load_state_dict(
        torch.load(tmp_path / "merged.pt", weights_only=True)
    )


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


def test_weights_and_spec_may_be_files(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{name}.ckpt" for name in "ab"]
    for path, state in zip(paths, ends, strict=True):
        torch.save(
            {"state_dict": state, "pytorch-lightning_version": "2.6.6"}, path
        )
    given = make(ends)
    fit(given, tmp_path)
    given.spec.save(tmp_path / "spec.json")
    module = make((str(paths[0]), paths[1]), spec=tmp_path / "spec.json")
    fit(module, tmp_path)
    assert module.permutation == given.permutation


def test_starts_from_a_given_permutation(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    spec = infer_spec(Classifier(hidden=16), torch.zeros(2, FEATURES))
    start = Permutation.random(spec, torch.Generator().manual_seed(0))
    module = make(ends, init=start, spec=spec)
    starts = []
    real = module._project_on_rank_zero
    module._project_on_rank_zero = lambda step, before: (
        starts.append(before),
        real(step, before),
    )[1]
    fit(module, tmp_path, max_epochs=1)
    assert starts[0] == start


def test_starts_from_activations(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    """All six batches are fewer than the twenty that are looked at, so the order of the samples does not matter."""
    module = make(ends, init="activations")
    starts = []
    real = module._project_on_rank_zero
    module._project_on_rank_zero = lambda step, before: (
        starts.append(before),
        real(step, before),
    )[1]
    fit(module, tmp_path, max_epochs=1)
    nets = [Classifier(hidden=16), Classifier(hidden=16)]
    for net, state in zip(nets, ends, strict=True):
        net.load_state_dict(state)
    expected = match_activations(module.spec, *nets, train_data()).permutation
    assert starts[0] == expected
    assert not expected.is_identity


class FirstSample(Callback):
    """Remembers the first training batch."""

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx == 0:
            self.batch = batch[0]
            self.noise = torch.rand(
                3, generator=torch.default_generator.clone_state()
            )


def test_looking_at_the_data_changes_neither_their_order_nor_the_random_state(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    seen = []
    for init in ("identity", "activations", None):
        first = FirstSample()
        torch.manual_seed(1)
        module = (
            Classifier(hidden=16) if init is None else make(ends, init=init)
        )
        torch.manual_seed(1)
        fit(
            module,
            tmp_path,
            max_epochs=1,
            callbacks=[first],
            limit_val_batches=0,
        )
        seen.append(first)
    assert torch.equal(seen[0].batch, seen[2].batch)
    assert torch.equal(seen[1].batch, seen[2].batch)
    assert torch.equal(seen[0].noise, seen[2].noise)
    assert torch.equal(seen[1].noise, seen[2].noise)


class Whisper(Callback):
    """Claims an impossibly good minibatch for one permutation."""

    def __init__(self, permutation: Permutation) -> None:
        self.permutation = permutation

    def on_train_epoch_end(
        self, trainer: Trainer, pl_module: MergeModule
    ) -> None:
        pl_module._shortlist.offer(self.permutation, -1e9)

    on_train_epoch_start = on_train_epoch_end


def test_one_lucky_minibatch_does_not_decide(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    spec = infer_spec(Classifier(hidden=16), torch.zeros(2, FEATURES))
    lucky = Permutation.random(spec, torch.Generator().manual_seed(0))
    lucky_loss = held_out_loss(
        Classifier(hidden=16), interpolate(ends[0], lucky.apply(ends[1]), 0.5)
    )
    module = make(ends, spec=spec)
    scored = []
    real = module.on_validation_epoch_end
    module.on_validation_epoch_end = lambda: (
        scored.extend(s._candidate.permutation for s in module._scores),
        real(),
    )[1]
    trainer = fit(module, tmp_path, max_epochs=1, callbacks=[Whisper(lucky)])
    assert lucky in scored, "it is short-listed"
    assert module.permutation != lucky
    assert float(trainer.callback_metrics["best_midpoint_loss"]) < lucky_loss


def test_validate_alone_scores_the_start(ends: tuple[State, State]) -> None:
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = trainer.validate(make(ends), held_out(), verbose=False)
    expected = held_out_loss(Classifier(hidden=16), interpolate(*ends, 0.5))
    assert result[0]["val_midpoint_loss"] == pytest.approx(expected, rel=1e-5)


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__(hidden=16)
        self.automatic_optimization = False


class Silent(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0.0}, "lam=0.0"),
        ({"lam": (0.6, 0.4)}, r"lam=\(0.6, 0.4\)"),
        ({"stands_for": "both"}, "stands_for='both'"),
        ({"projection": "cosine"}, "projection='cosine'"),
        ({"init": "random"}, "init='random'"),
        ({"project_every": 0}, "project_every=0"),
    ],
)
def test_options_that_cannot_work_are_named(
    ends: tuple[State, State], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(ends, **options)


def test_models_without_a_loss_are_refused(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="pass loss="):
        MergeModule(mlp(FEATURES, 16, CLASSES), *ends)
    with pytest.raises(ConfigurationError, match="optimises manually"):
        MergeModule(Manual(), *ends)
    with pytest.raises(ConfigurationError, match="returned NoneType"):
        fit(MergeModule(Silent(16), *ends), tmp_path)


def test_weights_that_do_not_fit_are_named(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    with pytest.raises(StateDictError, match=r"net\.fc1\.weight"):
        make(
            (
                ends[0],
                {n: t for n, t in ends[1].items() if n != "net.fc1.weight"},
            )
        )
    broken = {
        n: torch.full_like(t, torch.nan) if n == "net.fc1.bias" else t
        for n, t in ends[1].items()
    }
    with pytest.raises(NonFiniteError, match=r"net\.fc1\.bias"):
        fit(make((ends[0], broken)), tmp_path)


def test_nothing_learned_yet(ends: tuple[State, State]) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.fit"):
        _ = make(ends).permutation
