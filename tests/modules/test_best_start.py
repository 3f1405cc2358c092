"""Where learning starts if several matchings compete, and that it never ends worse than any of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import FEATURES, Classifier
from helpers.merging import (
    State,
    fit,
    held_out,
    held_out_loss,
    in_setup,
    make,
    train_data,
)
from lightning.pytorch import Trainer

from lightning_rebasin import infer_spec, match_activations, match_weights
from lightning_rebasin.merging import interpolate
from lightning_rebasin.modules.batches import held_out_batches
from lightning_rebasin.modules.best_start import best_start
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.modules.midpoint_loss import MidpointLoss
from lightning_rebasin.symmetry import Transform


def loss_between(ends: tuple[State, State]) -> MidpointLoss:
    inner = InnerModel(Classifier(hidden=16), None)
    return MidpointLoss(
        inner, Endpoints(inner.model, *ends), without_labels=False
    )


def test_the_better_midpoint_wins_whatever_the_order(
    ends: tuple[State, State],
) -> None:
    loss = loss_between(ends)
    spec = infer_spec(Classifier(hidden=16), torch.randn(2, FEATURES))
    good = match_weights(spec, *ends).transform
    bad = Transform.random(spec, torch.Generator().manual_seed(0))
    batches = list(held_out())
    for starts in ([good, bad], [bad, good]):
        assert best_start(loss, starts, batches) is good
        assert best_start(loss, starts, []) is starts[0]
    # The mode that training needs is the one before.
    assert loss.inner.model.training


def test_a_loss_that_is_no_number_never_wins(
    ends: tuple[State, State],
) -> None:
    loss = loss_between(ends)
    spec = infer_spec(Classifier(hidden=16), torch.randn(2, FEATURES))
    starts = [
        Transform.random(spec, torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    ]
    broken = [starts[0].apply(ends[1])["net.fc1.weight"]]
    real = loss.ends.midpoint

    def midpoint(start: Transform, lam: float) -> State:
        found = real(start, lam)
        if start is starts[0]:
            found["net.fc1.weight"] = broken[0] * torch.nan
        return found

    loss.ends.midpoint = midpoint  # type: ignore[method-assign]
    assert best_start(loss, starts, list(held_out())) is starts[1]


def test_held_out_batches_are_those_of_validation(tmp_path: Path) -> None:
    found: list[Any] = []

    class Fitting(Classifier):
        def setup(self, stage: str) -> None:
            found.extend(held_out_batches(self.trainer, 2))

    options: dict[str, Any] = {
        "max_epochs": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
    }
    Trainer(**options).fit(Fitting(), train_data(), held_out())
    wanted = list(held_out())[:2]
    for own, other in zip(found, wanted, strict=True):
        assert torch.equal(own[0], other[0])
    # Without a validation there are only the batches of training.
    found.clear()
    in_setup(
        lambda trainer: found.extend(held_out_batches(trainer, 2)),
        train_data(shuffle=False),
        tmp_path,
    )
    for own, other in zip(found, train_data(shuffle=False), strict=False):
        assert torch.equal(own[0], other[0])


@pytest.mark.parametrize("kinds", ["permutation", "all"])
def test_the_result_is_never_worse_than_the_best_start(
    ends: tuple[State, State], tmp_path: Path, kinds: str
) -> None:
    """Steps far too long, so that everything learned is worse than both matchings."""
    long_steps = partial(torch.optim.Adam, lr=3.0)
    module = make(ends, kinds=kinds, optimizer=long_steps)
    trainer = fit(module, tmp_path, max_epochs=2)
    model = Classifier(hidden=16)
    spec = module.spec
    reference = spec.canonicalise(ends[0])
    networks = []
    for state in ends:
        networks.append(Classifier(hidden=16))
        networks[-1].load_state_dict(state)
    starts = [
        match_weights(spec, *ends),
        match_activations(spec, *networks, train_data(shuffle=False)),
    ]
    losses = [
        held_out_loss(
            model, interpolate(reference, s.transform.apply(ends[1]), 0.5)
        )
        for s in starts
    ]
    learned = held_out_loss(model, module.merged_state_dict())
    assert learned <= min(losses) + 1e-6
    # What was learned at last would have been worse.
    last = float(trainer.callback_metrics["val_midpoint_loss"])
    assert last > min(losses) + 1e-3
