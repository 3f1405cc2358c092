"""Gains are folded into readers, shifts into biases; contradictions are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_rebasin.errors import SpecError, StateDictError
from lightning_rebasin.symmetry import PermutationSpec, TensorInfo
from lightning_rebasin.symmetry.spec.folds import Centre, Fold, Reader
from lightning_rebasin.symmetry.spec.gauge import fold


def network(*, bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3, bias=bias)).double()
    for p in net.parameters():
        nn.init.normal_(p)
    return net


def spec_for(net: nn.Module, *, bias: bool) -> PermutationSpec:
    tensors = {
        n: TensorInfo(tuple(t.shape)) for n, t in net.state_dict().items()
    }
    reader = Reader("1.weight", 1, "1.bias" if bias else None)
    folds = (Fold("0.weight", "0.bias", (reader,)),)
    return PermutationSpec({}, tensors, {}, folds=folds)


@pytest.mark.parametrize("bias", [True, False])
def test_folding_keeps_the_function_and_is_done_once(bias: bool) -> None:
    net = network(bias=bias)
    spec = spec_for(net, bias=bias)
    x = torch.randn(5, 4).double()
    before = net(x)
    folded = fold(spec, net.state_dict())
    assert folded["0.weight"].tolist() == [1, 1, 1, 1]
    assert bool(folded["0.bias"].any()) != bias
    net.load_state_dict(folded)
    torch.testing.assert_close(net(x), before)
    again = fold(spec, folded)
    for name, tensor in folded.items():
        assert torch.equal(again[name], tensor)


def test_a_gain_of_zero_cannot_be_divided_out_of_a_shift() -> None:
    net = network(bias=False)
    state = net.state_dict()
    state["0.weight"][2] = 0
    with pytest.raises(StateDictError, match=r"'0\.weight' is \(nearly\) 0"):
        fold(spec_for(net, bias=False), state)


def test_tied_readers_stay_tied() -> None:
    tensors = {n: TensorInfo((2,)) for n in ("g",)}
    tensors |= {n: TensorInfo((1, 2)) for n in ("w", "same")}
    spec = PermutationSpec(
        {},
        tensors,
        {},
        aliases={"same": "w"},
        folds=(Fold("g", None, (Reader("w", 1),)),),
    )
    w = torch.ones(1, 2)
    found = fold(spec, {"g": torch.tensor([2.0, 3.0]), "w": w, "same": w})
    assert found["same"] is found["w"]
    assert found["w"].tolist() == [[2, 3]]
    assert w.tolist() == [[1, 1]], "the caller's weights stay"


def test_centres_take_the_mean_out() -> None:
    spec = PermutationSpec(
        {}, {"w": TensorInfo((2, 3))}, {}, centres=(Centre((("w", 1),)),)
    )
    found = fold(spec, {"w": torch.arange(6.0).reshape(2, 3)})
    assert found["w"].tolist() == [[-1, 0, 1], [-1, 0, 1]]


WRONG = {
    "unknown gain": Fold("x", None, (Reader("1.weight", 1),)),
    "unknown dimension": Fold("0.weight", None, (Reader("1.weight", 2),)),
    "another size": Fold("0.weight", None, (Reader("1.weight", 0),)),
    "another shift": Fold("0.weight", "1.bias", (Reader("1.weight", 1),)),
}


@pytest.mark.parametrize("what", WRONG)
def test_folds_that_do_not_fit_are_refused(what: str) -> None:
    spec = spec_for(network(bias=True), bias=True)
    with pytest.raises(SpecError):
        replace(spec, folds=(WRONG[what],))
