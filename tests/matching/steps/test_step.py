"""The registry of steps: one for each kind, unknown kinds and second steps refused by name."""

from __future__ import annotations

import pytest
import torch
from helpers.signs import SignStep

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching.steps.permutation import PermutationStep
from lightning_rebasin.matching.steps.step import (
    Step,
    register_step,
    registered_step,
    step_of,
)
from lightning_rebasin.symmetry.spec.values import Group

SIGNS = Group("s", 3, kind="flip")


def test_permutations_are_known() -> None:
    assert isinstance(step_of(Group("h", 3)), PermutationStep)


def test_a_registered_step_chooses_for_its_kind() -> None:
    step = SignStep()
    with registered_step(step) as known:
        assert known is step
        assert step_of(SIGNS) is step
        elements, values = step_of(SIGNS).best(
            torch.tensor([[2.0, -3.0, 0.0]]), "auto"
        )
    assert elements.tolist() == [[1, -1, 1]]
    assert values.tolist() == [5]


def test_a_step_is_forgotten_after_its_block_even_after_an_error() -> None:
    with pytest.raises(KeyError), registered_step(SignStep()):
        raise KeyError("x")
    with pytest.raises(ConfigurationError, match="cannot choose"):
        step_of(SIGNS)


def test_an_unknown_kind_is_named_with_what_is_known() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"group 's' is of the kind 'flip', .* \(it knows .*'permutation'",
    ):
        step_of(SIGNS)


def test_a_second_step_is_refused_and_the_first_stays() -> None:
    first = step_of(Group("h", 3))
    with pytest.raises(
        ConfigurationError,
        match="the kind 'permutation' has a matching step already",
    ):
        register_step(PermutationStep())
    assert step_of(Group("h", 3)) is first


def test_a_step_must_say_how_it_chooses() -> None:
    with pytest.raises(TypeError, match="best"):
        Step()  # type: ignore[abstract]
