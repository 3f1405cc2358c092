"""Which permutation is kept: the short list, its scores, and the statistics that belong to a score."""

from __future__ import annotations

import copy
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import CLASSES, FEATURES, Classifier
from helpers.merging import State, fit, held_out_loss, make
from helpers.models import BatchNormCNN
from helpers.specs import nested_spec
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_rebasin.errors import PermutationError
from lightning_rebasin.merging import interpolate, reset_batch_norm
from lightning_rebasin.modules import MergeModule
from lightning_rebasin.modules.candidates import (
    Candidate,
    Score,
    Shortlist,
    changed_fraction,
    estimate_statistics,
)
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


class BatchNormNet(LightningModule):
    """Images of noise around one mean per class; no example inputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = BatchNormCNN(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])


def test_batch_norm_statistics_are_those_of_the_midpoint(
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    batches: Any = [
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


class Whisper(Callback):
    """Claims an impossibly good minibatch for one permutation."""

    def __init__(self, permutation: Permutation) -> None:
        self.permutation = permutation

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        assert isinstance(pl_module, MergeModule)
        pl_module._scoring.shortlist.offer(self.permutation, -1e9)

    on_train_epoch_end = on_train_epoch_start


def test_one_lucky_minibatch_does_not_decide(
    ends: tuple[State, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = infer_spec(Classifier(hidden=16), torch.zeros(2, FEATURES))
    lucky = Permutation.random(spec, torch.Generator().manual_seed(0))
    lucky_loss = held_out_loss(
        Classifier(hidden=16), interpolate(ends[0], lucky.apply(ends[1]), 0.5)
    )
    module = make(ends, spec=spec)
    seen: list[Permutation] = []
    real = module.on_validation_epoch_end

    def spy() -> None:
        seen.extend(
            score._candidate.transform for score in module._scoring._scores
        )
        real()

    monkeypatch.setattr(module, "on_validation_epoch_end", spy)
    trainer = fit(module, tmp_path, max_epochs=1, callbacks=[Whisper(lucky)])
    assert lucky in seen, "it is short-listed"
    assert module.permutation != lucky
    assert float(trainer.callback_metrics["best_midpoint_loss"]) < lucky_loss


SPEC = PermutationSpec.from_table({"w": ("h",)}, {"w": (3,)})


def order(*places: int) -> Permutation:
    return Permutation(SPEC, {"h": torch.tensor(places)})


def test_the_short_list_is_current_then_lowest_then_start() -> None:
    current, low, start = order(0, 1, 2), order(1, 0, 2), order(2, 1, 0)
    listed = Shortlist()
    listed.start_from(start)
    listed.offer(current, 3.0)
    listed.offer(low, 1.0)
    listed.offer(order(1, 2, 0), 2.0)
    assert listed.candidates(current) == [current, low, start]


def test_equal_permutations_are_listed_once() -> None:
    listed = Shortlist()
    listed.start_from(order(1, 0, 2))
    listed.offer(order(1, 0, 2), 1.0)
    assert listed.candidates(order(1, 0, 2)) == [order(1, 0, 2)]
    assert listed.candidates(order(0, 1, 2)) == [
        order(0, 1, 2),
        order(1, 0, 2),
    ]


def test_the_first_of_equal_losses_stays_and_nan_is_never_lowest() -> None:
    listed = Shortlist()
    listed.offer(order(2, 1, 0), math.nan)
    assert listed.candidates(order(0, 1, 2)) == [order(0, 1, 2)]
    listed.offer(order(1, 0, 2), 1.0)
    listed.offer(order(2, 1, 0), 1.0)
    listed.offer(order(2, 1, 0), math.nan)
    assert listed.candidates(order(0, 1, 2))[1:] == [order(1, 0, 2)]


def test_a_cleared_list_forgets_its_lowest_loss_too() -> None:
    listed = Shortlist()
    listed.start_from(order(2, 1, 0))
    listed.offer(order(1, 0, 2), 1.0)
    listed.clear()
    assert listed.candidates(order(0, 1, 2)) == [order(0, 1, 2)]
    listed.offer(order(1, 2, 0), 5.0)
    assert listed.candidates(order(0, 1, 2))[1:] == [order(1, 2, 0)]


def test_a_candidate_survives_a_file_that_holds_no_code(
    tmp_path: Path,
) -> None:
    statistics = {"norm.running_mean": torch.tensor([0.5, 2.0])}
    kept = Candidate(order(2, 0, 1), 0.25, statistics)
    torch.save(kept.to_state(), tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    back = Candidate.from_state(SPEC, state)
    assert back.transform == kept.transform
    assert back.score == 0.25
    assert back.statistics["norm.running_mean"].tolist() == [0.5, 2.0]


def test_a_stored_state_is_a_snapshot() -> None:
    mean = torch.zeros(2)
    state = Candidate(order(0, 1, 2), 1.0, {"mean": mean}).to_state()
    mean.fill_(7.0)
    assert state["statistics"]["mean"].tolist() == [0.0, 0.0]


def test_a_stored_permutation_of_another_network_is_refused() -> None:
    state = Candidate(order(1, 0, 2), 1.0).to_state()
    wider = PermutationSpec.from_table({"w": ("h",)}, {"w": (4,)})
    with pytest.raises(PermutationError, match=r"'h': order has shape \(3,\)"):
        Candidate.from_state(wider, state)


def distance_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean of ``(w·x)²``: with one weight it is ``w² · mean(x²)``."""
    outputs: Tensor = model(batch)
    return outputs.square().mean()


def scored(batches: list[Tensor]) -> Score:
    inner = InnerModel(nn.Linear(1, 1, bias=False), distance_loss)
    weights = {"weight": torch.full((1, 1), 2.0)}
    score = Score(Candidate(order(0, 1, 2)), weights)
    for index, batch in enumerate(batches):
        score.update(
            partial(inner.loss_at, batch=batch, batch_idx=index), batch
        )
    return score


def test_a_score_is_the_mean_over_samples_not_over_batches() -> None:
    batches = [torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[3.0]])]
    candidate = scored(batches).finish(lambda sums: sums)
    # w = 2: (3·4·1 + 1·4·9) / 4 = 12, while the mean of the batches is 20.
    assert candidate.score == pytest.approx(12.0)
    assert candidate.transform == order(0, 1, 2)


def test_a_score_counts_the_samples_of_all_processes() -> None:
    score = scored([torch.tensor([[1.0], [1.0]])])
    # Another process saw two samples with losses of 10 each.
    other = torch.tensor([20.0, 2.0], dtype=torch.float64)
    assert score.finish(lambda sums: sums + other).score == pytest.approx(7.0)


def test_a_score_that_is_no_number_can_never_win() -> None:
    broken = scored([torch.tensor([[math.nan]])])
    assert broken.finish(lambda sums: sums).score == math.inf
    nothing = scored([])
    assert nothing.finish(lambda sums: sums).score == math.inf


def test_every_candidate_sees_the_same_noise_and_training_sees_none() -> None:
    def noisy(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.rand(())

    inner = InnerModel(nn.Linear(1, 1, bias=False), noisy)
    weights = {"weight": torch.ones(1, 1)}
    before = torch.get_rng_state()
    found = []
    for places in ((0, 1, 2), (2, 1, 0)):
        score = Score(Candidate(order(*places)), weights)
        batch = torch.ones(1, 1)
        score.update(partial(inner.loss_at, batch=batch, batch_idx=0), batch)
        found.append(score.finish(lambda sums: sums).score)
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), before)


def normed() -> tuple[InnerModel, nn.BatchNorm1d]:
    """A batch norm behind one weight, and the batch norm."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    inner = InnerModel(net, distance_loss).eval()
    norm = inner.model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm1d)
    return inner, norm


def test_statistics_are_averages_at_the_given_weights() -> None:
    inner, norm = normed()
    norm.get_buffer("running_mean").fill_(99.0)
    batches = [
        torch.tensor([[0.0], [2.0]]),
        torch.tensor([[4.0], [10.0]]),
    ]
    weights = {name: t.clone() for name, t in inner.model.state_dict().items()}
    weights["0.weight"] = torch.full((1, 1), 3.0)
    found = estimate_statistics(inner, weights, batches)
    # Batch means 3 and 21; unbiased variances 9·2 and 9·18.
    assert found["1.running_mean"].tolist() == [pytest.approx(12.0)]
    assert found["1.running_var"].tolist() == [pytest.approx(90.0)]
    assert int(found["1.num_batches_tracked"]) == 2
    assert norm.momentum == 0.1
    assert not norm.training


def test_without_batch_norm_or_batches_there_are_no_statistics() -> None:
    batches = [torch.ones(2, 1)]
    plain = InnerModel(nn.Linear(1, 1), distance_loss)
    assert estimate_statistics(plain, plain.model.state_dict(), batches) == {}
    inner, norm = normed()
    norm.get_buffer("running_mean").fill_(5.0)
    assert estimate_statistics(inner, inner.model.state_dict(), []) == {}
    assert norm.get_buffer("running_mean").tolist() == [5.0]


def test_the_changed_fraction_counts_units_with_their_parents_moves() -> None:
    spec = nested_spec(2, 3, 4)
    start = Permutation.identity(spec)
    swapped = Permutation(spec, {"heads": torch.tensor([1, 0])})
    # Both heads and all six units inside them move, the four of the width stay.
    assert changed_fraction(start, swapped) == pytest.approx(8 / 12)
    assert changed_fraction(swapped, swapped) == 0.0
    empty = PermutationSpec.from_table({}, {"w": (3,)})
    nothing = Permutation.identity(empty)
    assert changed_fraction(nothing, nothing) == 0.0
