"""Which kinds somebody asked for."""

from __future__ import annotations

import pytest
from helpers.signs import SignAction

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.actions.action import registered_action
from lightning_rebasin.symmetry.actions.kinds import chosen_kinds


def test_permutations_are_always_looked_for() -> None:
    with registered_action(SignAction()) as action:
        assert chosen_kinds([action.kind]) == {action.kind, "permutation"}
        assert chosen_kinds(()) == {"permutation"}


def test_all_means_every_registered_kind() -> None:
    before = chosen_kinds("all")
    with registered_action(SignAction()) as action:
        assert chosen_kinds("all") == before | {action.kind}


def test_another_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        SpecError, match=r"'spin' is not a kind.*'permutation'"
    ):
        chosen_kinds(["spin"])
