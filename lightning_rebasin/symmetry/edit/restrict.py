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
    if before is after or not (
        permutation.spec is before or permutation.spec == before
    ):
        return permutation
    kept = {
        g.id
        for g in after.groups.values()
        if g.id in before.groups and before.groups[g.id] == g
    }
    return Permutation(
        after,
        {
            name: order
            for name, order in permutation.orders.items()
            if name in kept
        },
    )
