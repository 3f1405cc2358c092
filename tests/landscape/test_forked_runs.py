"""Forked runs: children begin where the parent was, go their own ways, and leave the generators alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bistable import Bistable, noise
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.forked_runs import (
    ForkedRuns,
    length_of,
    seeded,
)

QUIET = {"accelerator": "cpu"}


class Spy(Callback):
    """Remembers the weight before and the sample of every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_start(
        self, trainer: Trainer, module: Bistable, batch: object, batch_idx: int
    ) -> None:
        self.seen.append((float(module.w.detach()), float(batch[0])))


def runs(spy: Spy, **options: object) -> ForkedRuns:
    return ForkedRuns(
        Bistable, noise(), 2, {**QUIET, "callbacks": [spy], **options}
    )


def by_hand(samples: list[float], w: float = 0.0) -> float:
    """Plain gradient descent on the samples, lr 0.1."""
    for x in samples:
        w -= 0.1 * (4 * w * (w * w - 1) + x)
    return w


def test_children_begin_where_the_parent_was(tmp_path: Path) -> None:
    """The fork lies in the middle of an epoch; every child still takes all 24 steps."""
    parent, first, second = Spy(), Spy(), Spy()
    runs(parent).parent(3, {7: tmp_path / "7.ckpt"})
    assert len(parent.seen) == 7
    before = by_hand([x for _, x in parent.seen])
    ends = []
    for number, spy in ((1, first), (2, second)):
        result = tmp_path / f"{number}.ckpt"
        steps = runs(spy).child(3, number, tmp_path / "7.ckpt", result)
        assert steps == 24
        assert len(spy.seen) == 17
        assert spy.seen[0][0] == pytest.approx(before, rel=1e-5)
        end = torch.load(result, weights_only=True)["state_dict"]["w"]
        hand = by_hand([x for _, x in spy.seen], before)
        assert float(end) == pytest.approx(hand, rel=1e-4)
        ends.append(float(end))
    assert [x for _, x in first.seen] != [x for _, x in second.seen]
    assert ends[0] != ends[1]


def test_a_run_is_decided_by_its_seed_and_number(tmp_path: Path) -> None:
    orders = []
    for seed, number in ((3, 1), (3, 1), (3, 2), (4, 1)):
        spy = Spy()
        runs(spy).child(seed, number, None, tmp_path / "x.ckpt")
        orders.append([x for _, x in spy.seen])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


def test_generators_are_given_back() -> None:
    own = torch.Generator().manual_seed(5)
    loader = noise(generator=own)
    kept = own.get_state()

    def draw() -> tuple[float, float, float, list[float]]:
        order = [float(batch[0]) for batch in loader]
        drawn = np.random.randint(2**31)  # noqa: NPY002
        return float(torch.rand(())), random.random(), drawn, order

    def seed_all() -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002

    seed_all()
    expected = draw()
    own.set_state(kept)
    seed_all()
    inside = []
    for _ in range(2):
        with seeded([8, 9], loader):
            inside.append(draw())
    with seeded([8, 10], loader):
        other = draw()
    assert inside[0] == inside[1]
    assert inside[0][:3] != other[:3]
    assert draw() == expected


def test_a_fork_beyond_the_end_and_another_kind_of_network(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigurationError, match="ends before its fork"):
        runs(Spy()).parent(0, {25: tmp_path / "25.ckpt"})
    plain = ForkedRuns(lambda: nn.Linear(1, 1), noise(), 1, QUIET)
    with pytest.raises(ConfigurationError, match="must give a Lightning"):
        plain.network(0)
    assert length_of(noise()) == 12
    assert length_of(iter([1])) is None
