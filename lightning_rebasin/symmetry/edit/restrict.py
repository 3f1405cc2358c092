"""A permutation in the terms of a spec with more pins."""

from __future__ import annotations

from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def restrict(
    permutation: Permutation, before: PermutationSpec, after: PermutationSpec
) -> Permutation:
    """A permutation in the terms of a spec with more pins: groups that it does not have stay in place.

    Args:
        permutation: A permutation.
        before: The spec before pinning; a permutation of any other spec is returned as it is.
        after: The spec after pinning.
    """
    own = permutation.spec is before or permutation.spec == before
    if before is after or not own:
        return permutation
    # Groups that pinning split have new names; their order cannot be carried over one to one.
    kept = {
        name: order
        for name, order in permutation.orders.items()
        if after.groups.get(name) == before.groups[name]
    }
    return Permutation(after, kept)
