"""The spec of the untied network beside that of the tied one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_rebasin import PermutationSpec
from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry import free_group, pin_group, tie_groups
from lightning_rebasin.symmetry.spec.folds import Fold, Reader
from lightning_rebasin.symmetry.spec.pin import pin_other_kinds
from lightning_rebasin.symmetry.spec.untied import (
    untied_names,
    with_own_tensors,
)
from lightning_rebasin.symmetry.spec.values import Group

TABLE = {"embed": (None, "s"), "up": ("h", "s"), "down": ("s", "h")}
SHAPES = {
    "embed": (5, 3),
    "gain": (3,),
    "head": (5, 3),
    "up": (4, 3),
    "down": (3, 4),
}


@pytest.fixture
def spec() -> PermutationSpec:
    """Tied: a permutation of the stream; untied: a rotation, for the gain is folded into the head."""
    plain = PermutationSpec.from_table({**TABLE, "gain": ("s",)}, SHAPES)
    tied = replace(plain, aliases={"head": "embed"})
    rotated = PermutationSpec.from_table(
        {**TABLE, "head": (None, "s")}, SHAPES
    )
    groups = {
        **rotated.groups,
        "s": Group("s", 3, kind="orthogonal"),
    }
    fold = Fold("gain", None, (Reader("head", 1),))
    return replace(tied, untied=replace(rotated, groups=groups, folds=(fold,)))


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    return {**found, "head": found["embed"]}


def test_canonical_weights_are_untied_when_asked(
    spec: PermutationSpec,
) -> None:
    weights = state()
    plain = spec.canonicalise(weights)
    assert plain["head"] is plain["embed"]
    found = spec.canonicalise(weights, untie=True)
    assert found.names == ("head",)
    assert found.spec is spec.untied
    folded = weights["embed"] * weights["gain"]
    torch.testing.assert_close(found.state["head"], folded)
    torch.testing.assert_close(found.state["embed"], weights["embed"])
    torch.testing.assert_close(found.state["gain"], torch.ones(3))
    again = spec.canonicalise(found.state, untie=True)
    for name, tensor in found.state.items():
        torch.testing.assert_close(again.state[name], tensor)


def test_where_nothing_is_gained_nothing_is_untied(
    spec: PermutationSpec,
) -> None:
    tied = replace(spec, untied=None)
    found = tied.canonicalise(state(), untie=True)
    assert found.names == ()
    assert found.spec is tied


def test_own_tensors_share_no_memory() -> None:
    weights = state()
    own = with_own_tensors(weights, ("head",))
    assert own["head"].data_ptr() != own["embed"].data_ptr()
    assert own["up"] is weights["up"]


def test_files_keep_it_and_text_says_it(spec: PermutationSpec) -> None:
    again = PermutationSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.untied == spec.untied
    line = "untying 'head' would allow: rotations (orthogonal) for s"
    assert line in str(spec)
    assert "untying" not in str(replace(spec, untied=None))


def test_pins_hold_in_both(spec: PermutationSpec) -> None:
    pinned = pin_group(spec, "h")
    assert pinned.untied is not None
    assert list(pinned.untied.groups) == ["s"]
    kept = pin_other_kinds(spec, {"permutation"})
    assert kept.untied is not None
    assert list(kept.untied.groups) == ["h"]


def test_other_changes_by_hand_forget_it(spec: PermutationSpec) -> None:
    assert free_group(spec, "v", {"embed": 0}).untied is None
    two = free_group(spec, "v", {"embed": 0})
    groups = {**two.groups, "w": Group("w", 5)}
    both = replace(two, groups=groups, untied=spec.untied)
    assert tie_groups(both, "v", "w").untied is None


def test_it_must_belong_to_the_same_network(spec: PermutationSpec) -> None:
    assert spec.untied is not None
    assert untied_names(spec, spec.untied) == ("head",)
    with pytest.raises(SpecError, match="fewer tied tensors"):
        replace(spec, aliases={})
    with pytest.raises(SpecError, match="no untied spec itself"):
        replace(spec, untied=spec)
    other = PermutationSpec.from_table({}, {"w": (2,)})
    with pytest.raises(SpecError, match="other tensors"):
        replace(spec, untied=other)


def test_identical_buffers_are_pinned_in_both(spec: PermutationSpec) -> None:
    """The table of the shared buffer moves with the stream, whichever network it is."""

    def with_buffer(one: PermutationSpec) -> PermutationSpec:
        tensors = {**one.tensors}
        tensors["down"] = replace(tensors["down"], kind="buffer")
        return replace(one, tensors=tensors, untied=None)

    assert spec.untied is not None
    inner = with_buffer(spec.untied)
    both = replace(with_buffer(spec), untied=inner)
    a = state()
    found = both.pin_identical_buffers(a, {**state(), "up": a["up"] + 1})
    assert not found.groups
    assert found.untied is not None
    assert not found.untied.groups
