"""Permutations in the terms of a spec with more pins."""

import torch
from helpers.specs import nested_spec

from lightning_rebasin.symmetry import (
    Permutation,
    PermutationSpec,
    pin_group,
)
from lightning_rebasin.symmetry.edit.restrict import restrict


def test_groups_that_are_left_keep_their_order():
    spec = nested_spec(3, 4, 5)
    pinned = pin_group(spec, "heads")
    full = Permutation.random(spec, torch.Generator().manual_seed(0))
    kept = restrict(full, spec, pinned)
    assert kept.spec is pinned
    assert torch.equal(kept.orders["model"], full.orders["model"])
    # The pieces of the units inside the heads are new groups, which stay in place.
    for name in ("value[0]", "value[1]", "value[2]"):
        assert kept.orders[name].tolist() == [0, 1, 2, 3]


def test_an_equal_spec_will_do():
    spec = nested_spec()
    again = PermutationSpec.from_dict(spec.to_dict())
    full = Permutation.random(again, torch.Generator().manual_seed(0))
    pinned = pin_group(spec, "model")
    kept = restrict(full, spec, pinned)
    assert kept.spec is pinned
    assert torch.equal(kept.orders["heads"], full.orders["heads"])


def test_permutations_of_other_specs_are_returned_as_they_are():
    spec = nested_spec()
    full = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert restrict(full, spec, spec) is full
    other = nested_spec(2)
    assert restrict(full, other, pin_group(other, "model")) is full
