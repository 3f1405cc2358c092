"""Tensors that are computed when they are asked for."""

import pytest
import torch

from lightning_rebasin.checkpoints.lazy import LazyTensors


def counted() -> tuple[LazyTensors, list[str], list[str]]:
    made: list[str] = []
    skipped: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.full((2,), float(ord(name)))

    plan = {name: torch.empty(2, device="meta") for name in "abc"}
    return LazyTensors(plan, make, skipped.append), made, skipped


def test_nothing_is_computed_before_its_turn() -> None:
    lazy, made, skipped = counted()
    part = lazy.part(["c", "a"]).renamed({"c": "model.c"})
    assert list(part) == ["model.c", "a"] and len(part) == 2
    assert "model.c" in part and "c" not in part and "b" not in part
    assert part.plan["model.c"].shape == (2,)
    assert not made
    assert part["model.c"].tolist() == [99.0, 99.0]
    part.skip("a")
    assert (made, skipped) == (["c"], ["a"])
    with pytest.raises(KeyError):
        part["b"]


def test_any_mapping_can_be_lazy() -> None:
    state = {"w": torch.ones(3)}
    lazy = LazyTensors.of(state)
    assert lazy["w"] is state["w"] and lazy.plan["w"] is state["w"]
    assert LazyTensors.of(lazy) is lazy
    lazy.skip("w")
