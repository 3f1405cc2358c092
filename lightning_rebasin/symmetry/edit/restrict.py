"""A permutation, or another transform, in the terms of a spec with more pins."""

from __future__ import annotations

from typing import TypeVar

from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

_Transform = TypeVar("_Transform", bound=Transform)


def restrict(
    transform: _Transform, before: PermutationSpec, after: PermutationSpec
) -> _Transform:
    """A transform in the terms of a spec with more pins: groups that it does not have stay as they are.

    Args:
        transform: A permutation or another transform.
        before: The spec before pinning; a transform of any other spec is returned as it is.
        after: The spec after pinning.
    """
    own = transform.spec is before or transform.spec == before
    if before is after or not own:
        return transform
    # Groups that pinning split have new names; their elements cannot be carried over one to one.
    kept = {
        name: element
        for name, element in transform.elements.items()
        if after.groups.get(name) == before.groups[name]
    }
    return type(transform)(after, kept)
