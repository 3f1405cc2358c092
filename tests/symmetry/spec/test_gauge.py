"""The canonical gauge: the same function in float64, once and for all, and refused where it would not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lightning_rebasin.errors import SpecError, StateDictError
from lightning_rebasin.symmetry import PermutationSpec, TensorInfo
from lightning_rebasin.symmetry.spec.folds import Centre, Fold, Reader
from lightning_rebasin.symmetry.spec.gauge import canonical_state, fold

WIDTH, OUT, INPUTS = 5, 3, 4
SHAPES = {
    "embed": (INPUTS, WIDTH),
    "gain": (WIDTH,),
    "shift": (WIDTH,),
    "w": (OUT, WIDTH),
    "b": (OUT,),
    "v": (WIDTH, OUT),
    "c": (OUT,),
}
#: ``v`` is stored the other way round, as GPT-2 stores its layers.
READERS = (Reader("w", 1, "b"), Reader("v", 0, "c"))
CENTRE = Centre((("embed", 1),))
Folds = tuple[Fold, ...]


def spec_of(
    folds: Folds,
    centres: tuple[Centre, ...] = (),
    aliases: dict[str, str] | None = None,
) -> PermutationSpec:
    tensors = {name: TensorInfo(shape) for name, shape in SHAPES.items()}
    for name, origin in (aliases or {}).items():
        tensors[name] = tensors[origin]
    return PermutationSpec(
        {}, tensors, {}, folds=folds, centres=centres, aliases=aliases or {}
    )


def state_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }
    # A gain of either sign, not near 0.
    state["gain"] = state["gain"].sign() * (0.5 + state["gain"].abs())
    return state


def layer_norm(state: dict[str, Tensor]) -> Tensor:
    """Both readers of a LayerNorm over rows of a table, ``(INPUTS, 2·OUT)``."""
    rows = torch.nn.functional.layer_norm(
        state["embed"], (WIDTH,), state["gain"], state["shift"]
    )
    left = rows @ state["w"].T + state["b"]
    right = rows @ state["v"] + state["c"]
    return torch.cat([left, right], 1)


def rms_norm(state: dict[str, Tensor]) -> Tensor:
    """A reader without a bias behind a norm without a mean; the shift comes after the gain all the same."""
    rows = torch.nn.functional.rms_norm(state["embed"], (WIDTH,), eps=1e-6)
    rows = rows * state["gain"] + state["shift"]
    return torch.cat([rows @ state["w"].T, rows @ state["v"]], 1)


def bare(readers: tuple[Reader, ...]) -> tuple[Reader, ...]:
    return tuple(Reader(one.weight, one.dim) for one in readers)


CASES = pytest.mark.parametrize(
    ("function", "spec"),
    [
        (
            layer_norm,
            spec_of((Fold("gain", "shift", READERS),), (CENTRE,)),
        ),
        (
            layer_norm,
            spec_of(
                (Fold("gain", "shift", (READERS[0], Reader("v", 0))),),
                (CENTRE,),
            ),
        ),
        (rms_norm, spec_of((Fold("gain", "shift", bare(READERS)),))),
    ],
    ids=["shift absorbed", "one bias missing", "no bias"],
)
Function = Callable[[dict[str, Tensor]], Tensor]


@CASES
@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_the_function_stays_and_once_is_enough(
    function: Function, spec: PermutationSpec, seed: int
) -> None:
    state = state_of(seed)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    found = canonical_state(spec, state)
    torch.testing.assert_close(
        function(found), function(state), rtol=1e-9, atol=1e-9
    )
    assert torch.equal(found["gain"], torch.ones(WIDTH).double())
    if spec.folds[0].absorbs_shift:
        assert not found["shift"].any()
    if spec.centres:
        means = found["embed"].mean(1)
        torch.testing.assert_close(means, torch.zeros_like(means))
    again = canonical_state(spec, found)
    for name, tensor in found.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-14)
        # What came in is left alone.
        assert torch.equal(state[name], kept[name])


def test_a_fold_by_hand() -> None:
    """``w·(2x + 5) + b`` with w = 3, b = 1 is ``6x + 16``."""
    tensors = {name: TensorInfo((1,)) for name in ("gain", "shift", "b")}
    tensors["w"] = TensorInfo((1, 1))
    spec = PermutationSpec(
        {}, tensors, {}, folds=(Fold("gain", "shift", (READERS[0],)),)
    )
    state = {
        "gain": torch.tensor([2.0]),
        "shift": torch.tensor([5.0]),
        "w": torch.tensor([[3.0]]),
        "b": torch.tensor([1.0]),
    }
    found = {name: float(value) for name, value in fold(spec, state).items()}
    assert found == {"gain": 1, "shift": 0, "w": 6, "b": 16}


def test_readers_that_share_a_bias_each_add_to_it() -> None:
    """``W₁y + W₂y + b`` gets the shift through both."""
    readers = (Reader("w", 1, "b"), Reader("v", 0, "b"))
    spec = spec_of((Fold("gain", "shift", readers),))
    state = state_of(0)

    def summed(weights: dict[str, Tensor]) -> Tensor:
        rows = weights["embed"] * weights["gain"] + weights["shift"]
        both = weights["w"].T + weights["v"]
        return rows @ both + weights["b"]

    torch.testing.assert_close(summed(fold(spec, state)), summed(state))


def test_dtypes_stay_and_float32_is_rounded_once() -> None:
    spec = spec_of((Fold("gain", "shift", READERS),), (CENTRE,))
    narrow = {name: t.float() for name, t in state_of(1).items()}
    found = fold(spec, narrow)
    exact = fold(spec, {name: t.double() for name, t in narrow.items()})
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, exact[name].float())


def test_tied_names_stay_tied() -> None:
    spec = spec_of((Fold("gain", None, (READERS[0],)),), (), {"head": "w"})
    state = state_of(2)
    state["head"] = state["w"]
    found = fold(spec, state)
    assert found["head"] is found["w"]
    assert not torch.equal(found["w"], state["w"])


def test_a_gain_of_zero_cannot_be_divided_out_of_a_shift() -> None:
    spec = spec_of((Fold("gain", "shift", bare(READERS)),))
    state = state_of(3)
    state["gain"][2] = 0
    with pytest.raises(
        StateDictError, match=r"gain 'gain' is .* 0 .* shift 'shift' is not"
    ):
        fold(spec, state)
    state["shift"][2] = 0
    torch.testing.assert_close(rms_norm(fold(spec, state)), rms_norm(state))
    # With biases nothing has to be divided.
    state["shift"][2] = 1
    absorbing = spec_of((Fold("gain", "shift", READERS),))
    torch.testing.assert_close(
        layer_norm(fold(absorbing, state)), layer_norm(state)
    )


def test_without_folds_the_weights_come_back_in_another_dict() -> None:
    state = state_of(4)
    found = fold(spec_of(()), state)
    assert found is not state
    assert all(found[name] is state[name] for name in state)


@CASES
def test_json_keeps_the_gauge(
    function: Function, spec: PermutationSpec
) -> None:
    del function
    again = PermutationSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert (again.folds, again.centres) == (spec.folds, spec.centres)


def test_files_without_a_gauge_do_not_mention_it() -> None:
    assert not {"folds", "centres"} & spec_of(()).to_dict().keys()


@pytest.mark.parametrize(
    ("folds", "centres", "why"),
    [
        ((Fold("none", None, READERS),), (), "'none'"),
        ((Fold("gain", "b", READERS),), (), "shift 'b' does not fit"),
        ((Fold("gain", None, (Reader("w", 0),)),), (), "dimension 0 of 'w'"),
        ((Fold("gain", None, (Reader("w", 2),)),), (), "dimension 2 of 'w'"),
        ((Fold("gain", None, (Reader("w", -1),)),), (), "dimension -1 of 'w'"),
        ((Fold("gain", None, (Reader("w", 1, "no"),)),), (), "'no'"),
        ((Fold("gain", "shift", (Reader("w", 1, "gain"),)),), (), "'gain'"),
        ((), (Centre((("embed", 2),)),), "dimension 2 of 'embed'"),
        ((), (Centre((("none", 0),)),), "'none'"),
    ],
)
def test_what_the_tensors_do_not_have_is_refused(
    folds: Folds, centres: tuple[Centre, ...], why: str
) -> None:
    with pytest.raises(SpecError, match=why):
        spec_of(folds, centres)


@pytest.mark.parametrize(
    "change",
    [
        {"folds": 3},
        {"folds": [{"gain": "gain"}]},
        {"folds": [{"gain": ["gain"], "shift": None, "readers": []}]},
        {
            "folds": [
                {
                    "gain": "gain",
                    "shift": None,
                    "readers": [{"weight": "w", "dim": "1", "bias": None}],
                }
            ]
        },
        {
            "folds": [
                {
                    "gain": "gain",
                    "shift": None,
                    "readers": [{"weight": "w", "way": 1}],
                }
            ]
        },
        {"centres": [[["embed"]]]},
        {"centres": [[["embed", "x"]]]},
    ],
)
def test_hostile_json_is_a_typed_error(change: dict[str, Any]) -> None:
    data = {**spec_of(()).to_dict(), **change}
    with pytest.raises(SpecError):
        PermutationSpec.from_dict(data)
