"""Batch norms as a tape has them."""

from __future__ import annotations

import torch

from lightning_rebasin.merging.refit.norms import norm_of
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.symmetry.trace.tape import Node

SLOTS = {
    name: Slots(name, torch.zeros(1, 1, dtype=torch.long))
    for name in ("running_mean", "running_var", "weight", "bias")
}


def test_the_parts_of_a_norm_are_told_apart_by_name() -> None:
    for word in ("eps", "epsilon"):
        node = Node("aten.native_batch_norm", {word: 0.25}, [0], "")
        norm = norm_of(node, SLOTS)
        assert norm is not None
        assert norm.mean.name == "running_mean"
        assert norm.variance.name == "running_var"
        assert norm.gain is SLOTS["weight"]
        assert norm.offset is SLOTS["bias"]
        assert norm.epsilon == 0.25


def test_without_statistics_there_is_no_norm() -> None:
    node = Node("aten.native_batch_norm", {"eps": 0.25}, [0], "")
    for name in ("running_mean", "running_var"):
        assert norm_of(node, {**SLOTS, name: None}) is None
    assert norm_of(node, {**SLOTS, "weight": None, "bias": None}) is not None
