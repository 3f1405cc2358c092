"""Specs with larger kinds: groups inside units, powers of each copy, folds that must stand in order."""

from __future__ import annotations

import pytest
import torch

from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
)
from lightning_rebasin.symmetry.continuous.candidates import Candidate
from lightning_rebasin.symmetry.continuous.enlarge import (
    check_order,
    enlarge,
    inner_name,
    stands_in_order,
)
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.spec.folds import Fold, Reader


def spec_of(index: torch.Tensor, rows: int) -> PermutationSpec:
    """A group whose units stand in the rows of ``w`` and in all columns of ``out``."""
    size = len(index)
    columns = torch.arange(size)[:, None]
    return PermutationSpec(
        {"h": Group("h", size)},
        {
            "w": TensorInfo((rows, 3)),
            "out": TensorInfo((2, size)),
            "gain": TensorInfo((size,)),
        },
        {
            "w": AxisMap("w", ((rows,), (3,)), (Component("h", (0,), index),)),
            "out": AxisMap(
                "out", ((2,), (size,)), (Component("h", (1,), columns),)
            ),
            "gain": AxisMap(
                "gain", ((size,),), (Component("h", (0,), columns),)
            ),
        },
    )


PACKED = torch.tensor([[0, 2, 4], [1, 3, 5]])


def test_copies_with_different_powers_become_different_components():
    candidate = Candidate("h", "linear", {"w": (1, -1, 1), "out": -1})
    spec = enlarge(spec_of(PACKED, 6), [candidate], {})
    assert spec.groups["h"].kind == "linear"
    found = {c.power: c.index.tolist() for c in spec.maps["w"].components}
    assert found == {1: [[0, 4], [1, 5]], -1: [[2], [3]]}
    assert [c.power for c in spec.maps["out"].components] == [-1]


def test_copies_with_one_power_stay_together():
    candidate = Candidate("h", "linear", {"w": (1, 1, 1), "out": (-1,)})
    spec = enlarge(spec_of(PACKED, 6), [candidate], {})
    (component,) = spec.maps["w"].components
    assert component.index.tolist() == PACKED.tolist()


def test_numbers_live_in_a_group_of_their_own_inside_each_unit():
    candidate = Candidate("h", "scale", {"w": 1, "out": -1}, inside=True)
    spec = enlarge(spec_of(PACKED[:, :1], 2), [candidate], {"h": "why"})
    assert spec.groups["h"].kind == "permutation"
    assert spec.groups["h/scale"] == Group(
        "h/scale", 1, spec.groups["h"], "scale"
    )
    assert spec.maps["w"].groups == ("h/scale",)
    assert dict(spec.limits) == {"h": "why"}


def test_any_number_is_called_a_number():
    assert inner_name(Candidate("h", "linear", {}, inside=True)) == "h/number"


def test_a_gain_needs_its_readers_in_order():
    in_order = spec_of(torch.tensor([[0], [1]]), 2)
    fold = Fold("gain", None, (Reader("w", 0),))
    check_order(in_order, "h", fold)
    assert stands_in_order(in_order.maps["w"], "h", 0)
    swapped = spec_of(torch.tensor([[1], [0]]), 2)
    assert not stands_in_order(swapped.maps["w"], "h", 0)
    with pytest.raises(Limit, match="another order in 'w'"):
        check_order(swapped, "h", fold)


def test_a_folded_gain_moves_no_more():
    fold = Fold("gain", None, (Reader("out", 1),))
    candidate = Candidate(
        "h", "orthogonal", {"w": 1, "out": -1}, folds=(fold,)
    )
    spec = enlarge(spec_of(torch.tensor([[0], [1]]), 2), [candidate], {})
    assert "gain" not in spec.maps
    assert any(pin.tensor == "gain" for pin in spec.pinned)
    assert spec.folds == (fold,)
