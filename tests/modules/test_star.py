"""StarModule: closed forms of a linear network, matching per epoch, the report, and what a trainer asks for."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import FEATURES, Classifier, blobs
from helpers.ends import held_out, states, train_data
from helpers.quiet import fit_quietly, quiet_trainer
from helpers.valleys import TwoLayers, nothing
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_rebasin import (
    Permutation,
    StarModule,
    average,
    infer_spec,
    match_weights,
    measure_barrier,
    reset_batch_norm,
)
from lightning_rebasin.errors import ConfigurationError, StateDictError

State = dict[str, Tensor]
E1, E2 = torch.eye(2)
#: Two minima of ``(u·v − 1)²`` that mirror each other, and one orthogonal to both.
PLUS, MINUS = {"u": E1, "v": E1}, {"u": -E1, "v": -E1}
ACROSS = {"u": E2, "v": E2}


def make(ends: list[Any], **options: Any) -> StarModule:
    return StarModule(Classifier(hidden=16), ends, **options)


def fit(module: StarModule, folder: Path, **options: Any) -> Any:
    trainer = quiet_trainer(folder, **options)
    return fit_quietly(trainer, module, train_data(), held_out())


def integral(values: tuple[float, ...]) -> float:
    """Simpson's rule, exact for the quartics here up to 1e-8."""
    weights = [1.0] + [4.0, 2.0] * (len(values) // 2 - 1) + [4.0, 1.0]
    total = sum(w * v for w, v in zip(weights, values, strict=True))
    return total / (3 * (len(values) - 1))


def test_a_centre_at_a_minimum_has_the_integral_of_the_closed_form() -> None:
    """No minimum is a better centre of two mirrored ones: both integrals add up to (4/15)·E[x²]."""
    module = StarModule(TwoLayers(), [PLUS, MINUS], center=ACROSS)
    report = module.report(nothing(2), points=101)
    both = sum(integral(ray.values["loss"]) for ray in report.rays)
    assert both == pytest.approx(4 / 15, abs=1e-6)
    # On the straight line the product of the layers is (1 − 2t)², at the middle 0.
    assert report.pair_barriers == {(0, 1): pytest.approx(1.0)}
    # On a ray it is (1 − t)² + t², at the middle ½.
    assert report.center_barriers == (pytest.approx(0.25),) * 2
    assert report.lengths[0, 1] == pytest.approx(2**0.5)
    assert report.worst(0, 1) == (
        pytest.approx(1.0),
        pytest.approx(0.25),
    )
    assert "1.414" in str(report)


def test_the_learned_centre_has_the_least_integral(tmp_path: Path) -> None:
    """With ``q = u·v`` at the centre a ray has ``∫ t²((1 + q)t − 2)² dt``, least at q = 3/2: 1/12 (our derivation)."""
    start = {"u": E2 + 0.3 * E1, "v": 0.8 * E2}
    module = StarModule(
        TwoLayers(),
        [PLUS, MINUS],
        center=start,
        ends_per_step=2,
        optimizer=partial(torch.optim.Adam, lr=0.02),
        lr_scheduler=partial(
            torch.optim.lr_scheduler.ExponentialLR, gamma=0.7
        ),
    )
    trainer = quiet_trainer(tmp_path, max_epochs=12)
    fit_quietly(trainer, module, nothing(100), nothing(1))
    centre = module.center_state_dict()
    assert float(centre["u"] @ centre["v"]) == pytest.approx(1.5, abs=0.1)
    assert float(centre["u"][0] + centre["v"][0]) == pytest.approx(0, abs=0.1)
    report = module.report(nothing(1), points=101)
    # What is left of the sampling noise along e1 helps one ray as much as it harms the other.
    both = sum(integral(ray.values["loss"]) for ray in report.rays)
    assert both / 2 == pytest.approx(1 / 12, abs=2e-3)


def test_one_step_by_hand(tmp_path: Path) -> None:
    """One end, three t's, the mean of their losses and λ‖θ − θ_i‖²; t = 0 is the centre."""
    ends, pull = states(3), 0.01
    sgd = partial(torch.optim.SGD, lr=0.5)
    module = make(ends, proximity=pull, optimizer=sgd, seed=4)
    generator = module.options.generator(0, 0)
    end = ends[int(generator.choice(3, 1, replace=False)[0])]
    ts = [module.options.draw_t(generator) for _ in range(3)]
    assert len(set(ts)) == 3
    model = Classifier(hidden=16)
    names = list(dict(model.named_parameters()))
    theta = {n: t.requires_grad_() for n, t in average(ends).items()}
    x, y = next(iter(train_data()))
    losses = []
    for t in ts:
        weights = {n: (1 - t) * theta[n] + t * end[n] for n in names}
        logits = torch.func.functional_call(model, weights, (x,))
        losses.append(torch.nn.functional.cross_entropy(logits, y))
    far = sum((theta[n] - end[n]).square().sum() for n in names)
    (sum(losses) / 3 + pull * far).backward()
    fit(module, tmp_path, max_steps=1)
    centre = module.center_state_dict()
    for name in names:
        expected = theta[name].detach() - 0.5 * theta[name].grad
        torch.testing.assert_close(centre[name], expected)


def test_ends_stay_bitwise_and_the_seed_decides(tmp_path: Path) -> None:
    ends = states(3)
    kept = copy.deepcopy(ends)
    found = []
    for seed in (5, 5, 6):
        module = make(ends, seed=seed)
        fit(module, tmp_path)
        found.append(module.free[0][0].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    for number, end in enumerate(kept):
        for name, tensor in module.state_dict_at(1.0, number).items():
            assert torch.equal(tensor, end[name])
            assert torch.equal(ends[number][name], end[name])


def test_every_end_is_drawn_and_each_of_them_once_a_step() -> None:
    module = make(states(3), ends_per_step=2, ts_per_step=2)
    seen = set()
    for step in range(20):
        points = module.draw(module.options.generator(step, 0))
        ends = [id(point.anchors[1]) for point in points]
        assert ends[0] == ends[1] != ends[2] == ends[3]
        seen |= set(ends)
    assert seen == {id(state) for state in module.ends.states}


def test_sources_are_matched_to_the_centre_once_per_epoch(
    tmp_path: Path,
) -> None:
    module = make(states(3), match="epoch")
    epochs: list[State] = []
    real = module.on_train_epoch_start

    def spy() -> None:
        centre = module.center_state_dict()
        before = list(module.permutations)
        real()
        for number, start in enumerate(before):
            expected = match_weights(
                module._aligner.spec, centre, states(3)[number], init=start
            ).permutation
            assert module.permutations[number] == expected
            moved = expected.apply(states(3)[number])
            for name, tensor in moved.items():
                assert torch.equal(tensor, module.ends.states[number][name])
        epochs.append(centre)

    module.on_train_epoch_start = spy  # type: ignore[method-assign]
    fit(module, tmp_path)
    assert len(epochs) == 3
    assert any(
        p is not None and not p.is_identity for p in module.permutations
    )


def test_matching_at_the_start_finds_planted_copies(tmp_path: Path) -> None:
    a = states(1)[0]
    spec = infer_spec(Classifier(hidden=16), torch.zeros(2, FEATURES))
    copies = []
    for seed in (1, 2):
        draw = torch.Generator().manual_seed(seed)
        copies.append(Permutation.random(spec, draw).apply(a))
    still = partial(torch.optim.SGD, lr=0.0)
    for center in ("average", a):
        module = make(
            [a, *copies], match="start", center=center, optimizer=still
        )
        fit(module, tmp_path, max_epochs=1)
        for name, tensor in module.center_state_dict().items():
            torch.testing.assert_close(tensor, a[name])
        report = module.report(held_out(), points=3)
        assert max(report.pair_barriers.values()) < 1e-6
        assert all(length != length for length in report.lengths.values())


def test_resuming_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, first, resumed = (make(states(3), match="epoch") for _ in range(3))
    fit(whole, tmp_path, max_epochs=4)
    saving = ModelCheckpoint(tmp_path, filename="half")
    fit(
        first,
        tmp_path,
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[saving],
    )
    half = tmp_path / "half.ckpt"
    trainer = quiet_trainer(tmp_path, max_epochs=4)
    fit_quietly(trainer, resumed, train_data(), held_out(), half)
    assert resumed.permutations == whole.permutations
    expected = whole.center_state_dict()
    for name, tensor in resumed.center_state_dict().items():
        assert torch.equal(tensor, expected[name])
    loaded = StarModule.load_from_checkpoint(
        half, model=Classifier(hidden=16), ends=states(3)
    )
    assert loaded.permutations == first.permutations
    assert torch.load(half, weights_only=True)["hyper_parameters"] == {
        "match": "epoch",
        "t": "uniform",
        "beta": (2.0, 2.0),
        "ends_per_step": 1,
        "ts_per_step": 3,
        "proximity": 0.0,
        "val_points": 5,
        "batch_norm_batches": 20,
        "seed": 0,
    }


def test_logs_and_report_agree_with_measured_barriers(tmp_path: Path) -> None:
    module = make(states(3), val_points=3)
    trainer = fit(module, tmp_path)
    logged = trainer.callback_metrics
    assert "star/train_loss" in logged
    report = module.report(held_out(), points=3)
    centre = module.center_state_dict()
    losses, accuracies = [], []
    for number, end in enumerate(states(3)):
        curve = measure_barrier(
            trainer.model.inner.model, centre, end, held_out(), points=3
        )
        ray = report.rays[number]
        assert ray.values.keys() == curve.values.keys()
        assert ray.values["val_acc"] == pytest.approx(curve.values["val_acc"])
        loss = ray.values["val_loss"]
        assert loss == pytest.approx(curve.values["val_loss"], rel=1e-5)
        worst = float(logged[f"val_star/end {number}"])
        assert worst == pytest.approx(max(loss[1:]), rel=1e-5)
        first = 1 if number else 0
        losses += loss[first:]
        accuracies += ray.values["val_acc"][first:]
    assert float(logged["val_star/center"]) == pytest.approx(
        losses[0], rel=1e-5
    )
    # Of seven points: the centre, and two on each ray.
    found = {
        name: float(logged[f"val_star/val_acc/{name}"])
        for name in ("mean", "worst")
    }
    assert found["mean"] == pytest.approx(sum(accuracies) / 7)
    assert found["worst"] == pytest.approx(min(accuracies))
    worst = float(logged["val_star/val_loss/worst"])
    assert worst == pytest.approx(max(losses), rel=1e-5)
    assert set(report.pairs) == {(0, 1), (0, 2), (1, 2)}


def test_batch_norm_statistics_of_the_centre(tmp_path: Path) -> None:
    ends = states(3, batch_norm=True)
    model = Classifier(hidden=16, batch_norm=True)
    module = StarModule(model, ends, batch_norm_batches=3)
    fit(module, tmp_path, max_epochs=1)
    model.load_state_dict(module.center_state_dict(()))
    batches = list(train_data())[-3:]
    expected = reset_batch_norm(model, batches).state_dict()
    found = module.center_state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    with pytest.raises(ConfigurationError, match="batch_norm=loader"):
        module.report(held_out())
    report = module.report(held_out(), points=3, batch_norm=batches)
    model.load_state_dict(found)
    x, y = blobs(50, 1).tensors
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.eval()(x), y)
    found = report.rays[0].values["val_loss"][0]
    assert found == pytest.approx(float(loss), rel=1e-5)


def test_wrong_input_is_a_clear_error() -> None:
    ends = states(2)
    other = copy.deepcopy(Classifier(hidden=4).state_dict())
    for options, words in (
        ({"match": "always"}, "always"),
        ({"ends_per_step": 3}, "ends_per_step=3"),
        ({"ts_per_step": 0}, "ts_per_step=0"),
        ({"proximity": -1.0}, "negative"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            make(ends, **options)
    with pytest.raises(StateDictError, match="the center"):
        make(ends, center=other)
    with pytest.raises(ConfigurationError, match="two sets"):
        make(ends[:1])
    with pytest.raises(ConfigurationError, match="ray 5"):
        make(ends).state_dict_at(0.5, 5)
    with pytest.raises(ConfigurationError, match="outside"):
        make(ends).state_dict_at(-0.1, 0)
