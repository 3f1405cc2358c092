"""CurveModule: closed forms, the published protocol by hand, and everything a trainer may ask of a module."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import CLASSES, FEATURES, Classifier, blobs
from helpers.ends import held_out, states, train_data
from helpers.quiet import fit_quietly, quiet_trainer
from helpers.valleys import Valley, nothing
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_rebasin import (
    CurveModule,
    Permutation,
    StarModule,
    infer_spec,
    interpolate,
    reset_batch_norm,
)
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    EquivalenceError,
    NonFiniteError,
    StateDictError,
)

State = dict[str, Tensor]
A, B = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}


def make(ends: list[Any], **options: Any) -> CurveModule:
    options.setdefault(
        "optimizer", partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    )
    return CurveModule(Classifier(hidden=16), ends, **options)


def fit(
    module: LightningModule,
    folder: Path,
    *,
    ckpt_path: str | Path | None = None,
    train: Any = None,
    val: Any = None,
    **options: Any,
) -> Trainer:
    trainer = quiet_trainer(folder, **options)
    train = train_data() if train is None else train
    val = held_out() if val is None else val
    return fit_quietly(trainer, module, train, val, ckpt_path)


def valley_loss(w: Tensor) -> Tensor:
    return (w.square().sum(-1) - 1).square()


def mean_loss(curve: str, bend: Tensor) -> float:
    """``∫ L(φ(t)) dt`` by the midpoint rule."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5)[:, None] / 4000
    a, b = A["w"].double(), B["w"].double()
    if curve == "bezier":
        points = (1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b
    else:
        first, second = (1 - 2 * t) * a + 2 * t * bend, 2 * t - 1
        points = torch.where(t < 0.5, first, (1 - second) * bend + second * b)
    return float(valley_loss(points).mean())


@pytest.mark.parametrize("curve", ["bezier", "polygon"])
def test_the_bend_of_a_circular_valley_goes_where_the_integral_is_least(
    curve: str, tmp_path: Path
) -> None:
    make_bend = lambda c: torch.full((2,), c, dtype=torch.float64)
    best = minimize_scalar(
        lambda c: mean_loss(curve, make_bend(c)), bounds=(0.5, 1.5)
    )
    halve = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.7)
    module = CurveModule(
        Valley(),
        [A, B],
        curve,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        lr_scheduler=halve,
    )
    straight = mean_loss(curve, make_bend(0.5))
    fit(
        module,
        tmp_path,
        train=nothing(100),
        val=nothing(1),
        max_epochs=12,
    )
    bend = module.anchors[0]["w"].detach().double()
    torch.testing.assert_close(bend, make_bend(best.x), atol=0.02, rtol=0)
    assert mean_loss(curve, bend) < 0.1 * straight


@pytest.mark.parametrize("t", [0.25, 0.5, 0.9])
def test_the_gradient_of_the_bend_is_its_share_of_the_gradient_at_the_point(
    t: float, tmp_path: Path
) -> None:
    """One step of plain SGD with learning rate 1 subtracts ``2t(1 − t) · ∇L(φ(t))``."""
    module = CurveModule(
        Valley(), [A, B], t=t, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    before = module.anchors[0]["w"].detach().clone()
    point = (1 - t) * A["w"] + t * B["w"]  # the start is straight
    point = point.requires_grad_()
    valley_loss(point).backward()
    fit(module, tmp_path, train=nothing(1), val=nothing(1), max_steps=1)
    moved = before - module.anchors[0]["w"].detach()
    torch.testing.assert_close(moved, 2 * t * (1 - t) * point.grad)


def test_the_published_protocol_by_hand(tmp_path: Path) -> None:
    """``dnn-mode-connectivity``: SGD with momentum on the bend, L2 of the interpolated weights in the loss."""
    ends, decay = states(2), 0.01
    module = make(ends, weight_decay=decay, seed=7)
    draw = module.options
    model = Classifier(hidden=16)
    bend = {
        n: torch.lerp(ends[0][n], ends[1][n], 0.5).requires_grad_()
        for n in dict(model.named_parameters())
    }
    optimizer = torch.optim.SGD(bend.values(), lr=0.1, momentum=0.9)
    for step, (x, y) in enumerate(train_data()):
        t = draw.draw_t(draw.generator(step, step))
        shares = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        weights = {
            n: shares[0] * ends[0][n] + shares[1] * b + shares[2] * ends[1][n]
            for n, b in bend.items()
        }
        logits = torch.func.functional_call(model, weights, (x,))
        norm = sum(w.square().sum() for w in weights.values())
        loss = cross_entropy(logits, y) + decay / 2 * norm
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fit(module, tmp_path, max_epochs=1)
    for name, expected in bend.items():
        found = module.anchors[0][name].detach()
        torch.testing.assert_close(found, expected.detach())
        assert not torch.equal(
            found, torch.lerp(ends[0][name], ends[1][name], 0.5)
        )


def test_the_start_is_the_segment_whatever_the_curve() -> None:
    ends = states(2)
    for options in ({}, {"bends": 3}, {"curve": "polygon", "bends": 2}):
        module = make(ends, **options)
        for t in (0.2, 0.7):
            expected = interpolate(*ends, t)
            for name, tensor in module.state_dict_at(t).items():
                torch.testing.assert_close(tensor, expected[name])


def test_ends_and_the_users_model_stay_bitwise(tmp_path: Path) -> None:
    ends = states(3)
    kept = copy.deepcopy(ends)
    model = Classifier(hidden=16)
    before = copy.deepcopy(model.state_dict())
    module = CurveModule(model, ends, bends=2)
    fit(module, tmp_path)
    for t, end, copied in zip((0.0, 0.5, 1.0), ends, kept, strict=True):
        found = module.state_dict_at(t)
        for name, tensor in copied.items():
            assert torch.equal(tensor, found[name])
            assert torch.equal(tensor, end[name])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.requires_grad for p in model.parameters())
    # All bends of both pieces were learned.
    fresh = make(kept, bends=2)
    for mine, start in zip(module.free, fresh.free, strict=True):
        assert not torch.equal(mine[0], start[0])


def test_same_seed_same_result_other_seed_another(tmp_path: Path) -> None:
    found = []
    for seed in (5, 5, 6):
        module = make(states(2), seed=seed)
        fit(module, tmp_path)
        found.append(module.free[0][0].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_resuming_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    options = {"bends": 2, "start": "matched"}
    whole = make(states(2), **options)
    fit(whole, tmp_path, max_epochs=4)
    first = make(states(2), **options)
    saving = ModelCheckpoint(tmp_path, filename="half")
    fit(
        first,
        tmp_path,
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[saving],
    )
    resumed = make(states(2), **options)
    fit(resumed, tmp_path, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    for mine, theirs in zip(
        resumed.parameters(), whole.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert not torch.equal(first.free[0][0], whole.free[0][0])
    content = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert not any("inner" in name for name in content["state_dict"])
    loaded = CurveModule.load_from_checkpoint(
        tmp_path / "half.ckpt", model=Classifier(hidden=16), ends=states(2)
    )
    assert loaded.permutations[1] == first.permutations[1]
    for t in (0.3, 1.0):
        expected = first.state_dict_at(t)
        for name, tensor in loaded.state_dict_at(t).items():
            assert torch.equal(tensor, expected[name])


def test_a_matched_start_undoes_a_planted_permutation(tmp_path: Path) -> None:
    a = states(1)[0]
    spec = infer_spec(Classifier(hidden=16), torch.zeros(2, FEATURES))
    planted = Permutation.random(spec, torch.Generator().manual_seed(3))
    module = make([a, planted.inverse().apply(a)], start="matched")
    with pytest.raises(ConfigurationError, match=r"trainer\.fit"):
        module.state_dict_at(0.5)
    frozen = partial(torch.optim.SGD, lr=0.0)
    module._optimizer = frozen
    fit(module, tmp_path, max_epochs=1)
    assert module.permutations == (None, planted)
    for t in (0.4, 1.0):
        for name, tensor in module.state_dict_at(t).items():
            torch.testing.assert_close(tensor, a[name])


def test_what_the_network_logs_is_passed_on(tmp_path: Path) -> None:
    trainer = fit(make(states(2)), tmp_path, max_epochs=1)
    logged = trainer.callback_metrics
    assert torch.equal(logged["curve/train_loss"], logged["curve_loss"])
    assert {"curve_loss", "val_curve/t=0.25", "val_curve_max"} <= set(logged)


def test_validation_is_the_held_out_loss_along_the_path(
    tmp_path: Path,
) -> None:
    module = make(states(2), val_points=3)
    trainer = fit(module, tmp_path)
    x, y = blobs(50, 1).tensors
    losses = []
    for t in (0.0, 0.5, 1.0):
        model = Classifier(hidden=16)
        model.load_state_dict(module.state_dict_at(t))
        with torch.no_grad():
            losses.append(float(cross_entropy(model(x), y)))
        logged = float(trainer.callback_metrics[f"val_curve/t={t:.2f}"])
        assert logged == pytest.approx(losses[-1], rel=1e-5)
    logged = trainer.callback_metrics
    assert float(logged["val_curve_max"]) == pytest.approx(max(losses))
    assert float(logged["val_curve_loss"]) == pytest.approx(sum(losses) / 3)


def test_metrics_of_the_own_validation_step_are_validated_and_reported(
    tmp_path: Path,
) -> None:
    ends = states(2)
    module = make(ends, val_points=3, start="matched")
    with pytest.raises(ConfigurationError, match=r"trainer\.fit"):
        module.report(held_out())
    trainer = fit(module, tmp_path, max_epochs=1)
    x, y = blobs(50, 1).tensors
    accuracies = []
    for t in (0.0, 0.5, 1.0):
        model = Classifier(hidden=16)
        model.load_state_dict(module.state_dict_at(t))
        with torch.no_grad():
            right = model(x).argmax(1) == y
        accuracies.append(float(right.double().mean()))
    logged = trainer.callback_metrics
    mean, worst = (
        float(logged[f"val_curve/val_acc/{name}"])
        for name in ("mean", "worst")
    )
    assert mean == pytest.approx(sum(accuracies) / 3)
    assert worst == pytest.approx(min(accuracies))
    # Not a metric of a batch but of all of them: AUROC of the last point alone, by torchmetrics.
    assert "val_curve/val_auroc/worst" in logged
    report = module.report(held_out(), points=3)
    assert list(report.curves) == ["naive", "matched", "curve"]
    found = report.curves["curve"]
    assert found.values["val_acc"] == pytest.approx(accuracies)
    ends_of = {
        name: (c.values["val_acc"][0], c.values["val_acc"][-1])
        for name, c in report.curves.items()
    }
    assert len(set(ends_of.values())) == 1
    assert report.curves["naive"].normalised_length == pytest.approx(1)
    assert found.straight < report.curves["naive"].straight
    alone = module.report(
        held_out(),
        points=3,
        loss=lambda net, batch: {
            "mine": cross_entropy(net(batch[0]), batch[1])
        },
    )
    mine = alone.curves["curve"].values
    assert list(mine) == ["mine"]
    assert mine["mine"] == pytest.approx(found.values["val_loss"], rel=1e-5)


def test_the_bend_is_what_was_learned(tmp_path: Path) -> None:
    module = make(states(2), curve="polygon", bends=1)
    fit(module, tmp_path, max_epochs=1)
    for name, tensor in module.state_dict_at(0.5).items():
        torch.testing.assert_close(module.bend_state_dict()[name], tensor)
    with pytest.raises(ConfigurationError, match="bend 1 does not exist"):
        module.bend_state_dict(1)


@pytest.mark.parametrize("kind", [CurveModule, StarModule])
def test_mixed_precision(kind: Any, tmp_path: Path) -> None:
    """The forward pass rounds to bfloat16, what is learned and the ends do not; the run is near to the exact one."""
    found = []
    sgd = partial(torch.optim.SGD, lr=0.1)
    for precision in ("bf16-mixed", "32-true"):
        module = kind(Classifier(16), states(2), optimizer=sgd)
        trainer = fit(module, tmp_path, precision=precision, max_epochs=2)
        learned = torch.cat([p.detach().flatten() for p in module.free[0]])
        assert learned.dtype == torch.float32
        loss = float(trainer.callback_metrics[f"val_{module.word}_loss"])
        found.append((learned, loss))
    (mixed, mixed_loss), (exact, exact_loss) = found
    assert not torch.equal(mixed, exact)
    start = torch.cat(
        [p.flatten() for p in kind(Classifier(16), states(2)).free[0]]
    )
    assert (mixed - exact).norm() < 0.05 * (exact - start).norm()
    assert mixed_loss == pytest.approx(exact_loss, rel=0.01)


def test_an_optimizer_of_other_parameters_and_no_batch(
    tmp_path: Path,
) -> None:
    other = Classifier(16)
    module = make(
        states(2),
        optimizer=lambda _: torch.optim.SGD(other.parameters(), lr=0.1),
    )
    with pytest.raises(ConfigurationError, match="not learned here"):
        fit(module, tmp_path)
    with (
        pytest.warns(UserWarning, match="is zero"),
        pytest.raises(DataError, match="no batch"),
    ):
        fit(make(states(2)), tmp_path, train=Empty())
    # Asked for, no training at all is not a mistake.
    fit(make(states(2)), tmp_path, limit_train_batches=0)


class Empty:
    """A loader without batches."""

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


class OwnRandomNumbers(Classifier):
    """A forward that nobody can make again: its noise comes from a generator of its own."""

    def __init__(self) -> None:
        super().__init__(16)
        self.source = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + torch.rand(x.shape, generator=self.source))


def test_what_no_permutation_leaves_alone_is_not_matched(
    tmp_path: Path,
) -> None:
    module = CurveModule(OwnRandomNumbers(), states(2), start="matched")
    with pytest.raises(EquivalenceError, match="not deterministic"):
        fit(module, tmp_path)


class Noisy(Classifier):
    """Draws random numbers in every loss, in eval mode too."""

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        noise = torch.rand_like(batch[0])
        return cross_entropy(self(batch[0] + noise), batch[1])


def test_validation_leaves_no_trace_in_training(tmp_path: Path) -> None:
    """The network draws the same numbers, validated or not."""
    found = []
    for limit in (0, 1.0):
        seed_everything(5, verbose=False)
        module = CurveModule(Noisy(16), states(2))
        torch.manual_seed(6)
        # Lightning draws a seed for the loader from the global generator, unless it has one of its own.
        own = torch.Generator()
        val = DataLoader(blobs(50, 1), batch_size=16, generator=own)
        fit(module, tmp_path, val=val, limit_val_batches=limit)
        found.append(module.free[0][0].detach())
    assert torch.equal(*found)


def test_batch_norm_statistics_are_those_of_the_point(tmp_path: Path) -> None:
    ends = states(2, batch_norm=True)
    model = Classifier(hidden=16, batch_norm=True)
    module = CurveModule(model, ends, batch_norm_batches=4)
    with pytest.raises(ConfigurationError, match="batches=loader"):
        module.state_dict_at(0.5)
    trainer = fit(module, tmp_path, max_epochs=1)
    batches = list(train_data())
    for chosen, given in ((batches[-4:], None), (batches[:2], batches[:2])):
        found = module.state_dict_at(0.5, given)
        model.load_state_dict(module.state_dict_at(0.5, ()))
        expected = reset_batch_norm(model, chosen).state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor)
    assert torch.equal(
        module.state_dict_at(1.0)["net.norm.running_var"],
        ends[1]["net.norm.running_var"],
    )
    # Validation saw these statistics.
    model.load_state_dict(module.state_dict_at(0.5))
    x, y = blobs(50, 1).tensors
    with torch.no_grad():
        loss = float(cross_entropy(model.eval()(x), y))
    logged = float(trainer.callback_metrics["val_curve/t=0.50"])
    assert logged == pytest.approx(loss, rel=1e-5)


def test_validating_batch_norms_without_training_warns(
    tmp_path: Path,
) -> None:
    model = Classifier(hidden=16, batch_norm=True)
    module = CurveModule(model, states(2, batch_norm=True))
    trainer = quiet_trainer(tmp_path)
    with pytest.warns(UserWarning, match="interpolated"):
        trainer.validate(module, held_out(), verbose=False)


def test_frozen_parameters_stay_on_the_segment(tmp_path: Path) -> None:
    model = Classifier(hidden=16)
    model.net.fc1.requires_grad_(requires_grad=False)
    ends = states(2)
    module = CurveModule(model, ends)
    fit(module, tmp_path)
    found, straight = module.state_dict_at(0.3), interpolate(*ends, 0.3)
    for name in ("net.fc1.weight", "net.fc1.bias"):
        torch.testing.assert_close(found[name], straight[name])
    assert not torch.allclose(
        found["net.fc2.weight"], straight["net.fc2.weight"], atol=1e-3
    )
    model.requires_grad_(requires_grad=False)
    with pytest.raises(ConfigurationError, match="frozen"):
        CurveModule(model, ends)


class Tied(LightningModule):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES, bias=False)
        self.second = nn.Linear(FEATURES, FEATURES, bias=False)
        self.second.weight = self.first.weight

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        return cross_entropy(self.second(self.first(batch[0])), batch[1])


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    ends = [copy.deepcopy(Tied().state_dict()) for _ in range(2)]
    module = CurveModule(Tied(), ends)
    fit(module, tmp_path, max_epochs=1)
    found = module.state_dict_at(0.5)
    assert torch.equal(found["first.weight"], found["second.weight"])
    assert len(module.free[0]) == 1


def test_ends_may_be_files_and_any_module_has_a_curve(tmp_path: Path) -> None:
    net = nn.Linear(FEATURES, CLASSES)
    paths = []
    for name in "ab":
        net.reset_parameters()
        torch.save({"state_dict": net.state_dict()}, tmp_path / name)
        paths.append(tmp_path / name)
    module = CurveModule(
        net,
        [str(paths[0]), paths[1]],
        loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
    )
    trainer = fit(module, tmp_path, max_epochs=1)
    assert "curve_loss" in trainer.callback_metrics
    net.load_state_dict(module.state_dict_at(0.5))


def test_double_precision_and_refused_half_precision(tmp_path: Path) -> None:
    module = make(states(2))
    fit(module, tmp_path, precision="64-true", max_epochs=1)
    assert module.state_dict_at(0.5)["net.fc1.bias"].dtype == torch.float64
    with pytest.raises(ConfigurationError, match="bf16-mixed"):
        fit(make(states(2)), tmp_path, precision="bf16-true")


def test_the_network_shares_the_memory_of_the_first_end() -> None:
    module = make(states(2))
    for name, parameter in module.inner.model.named_parameters():
        end = module.ends.states[0][name]
        assert parameter.data_ptr() == end.data_ptr()


def test_wrong_input_is_a_clear_error(tmp_path: Path) -> None:
    a, b = states(2)
    other = copy.deepcopy(Classifier(hidden=4).state_dict())
    broken = {**b, "net.fc1.bias": b["net.fc1.bias"] * torch.nan}
    for ends, error, words in (
        ([a], ConfigurationError, "two sets"),
        (a, ConfigurationError, "two sets"),
        ("a.ckpt", ConfigurationError, "two sets"),
        ([a, other], StateDictError, "end 1"),
        ([a, broken], NonFiniteError, "end 1"),
    ):
        with pytest.raises(error, match=words):
            make(ends)
    for options, words in (
        ({"curve": "circle"}, "circle"),
        ({"bends": 0}, "bends=0"),
        ({"start": "middle"}, "middle"),
        ({"t": "normal"}, "normal"),
        ({"t": 1.0}, "inside"),
        ({"beta": (0.0, 1.0)}, "beta"),
        ({"weight_decay": -1.0}, "negative"),
        ({"val_points": 1}, "val_points"),
        ({"batch_norm_batches": 0}, "batch_norm_batches"),
        ({"optimizer": torch.optim.SGD([a["net.fc1.bias"]])}, "another"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            make([a, b], **options)
    with pytest.raises(ConfigurationError, match="lies outside"):
        make([a, b]).state_dict_at(1.5)
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ConfigurationError, match="first forward"):
        CurveModule(lazy, [a, b], loss=lambda m, x: m(x).sum())
    with pytest.raises(ConfigurationError, match="no parameters"):
        CurveModule(nn.ReLU(), [a, b], loss=lambda m, x: m(x).sum())
    checkpoint: dict[str, Any] = {"state_dict": {}}
    with pytest.raises(ConfigurationError, match="not written by a Curve"):
        make([a, b]).on_load_checkpoint(checkpoint)
