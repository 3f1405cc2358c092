"""What would be true if a tied weight had a tensor for each of its uses: found like everything else, by inference.

The second analysis says which weight stands in the way of a larger kind.  If it is tied, a copy of the network with
separate tensors is analysed and proved as well, and its spec is kept beside the first one if some group has grown.
Where a weight has three uses, no more is untied than is needed: T5's head, and not the tables of both its streams.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from lightning_rebasin.errors import UntracedWarning
from lightning_rebasin.symmetry.run.copy import private_copy
from lightning_rebasin.symmetry.run.untie import separate
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def with_untied(
    module: nn.Module,
    spec: PermutationSpec,
    separable: Sequence[tuple[str, ...]],
    infer: Callable[[nn.Module], PermutationSpec],
) -> PermutationSpec:
    """The spec, knowing what untying would allow if it allows anything.

    Args:
        module: The network; it is left as it was.
        spec: Its spec.
        separable: Names that could get a tensor of their own, one set for each tensor.
        infer: Gives the spec of an untied copy.
    """
    for names in _choices(separable):
        # All weights but the separated ones stay where they are.
        free = private_copy(module, share=True)
        separate(free, names)
        with warnings.catch_warnings():
            # The user has heard of what the trace cannot vouch for.
            warnings.simplefilter("ignore", UntracedWarning)
            other = infer(free)
        if _grown(spec, other):
            # The spec of one more untying is not this one's to keep.
            return replace(spec, untied=replace(other, untied=None))
    return spec


def _choices(
    separable: Sequence[tuple[str, ...]],
) -> Iterator[tuple[str, ...]]:
    """What to untie, the least first: each tensor alone, heads before tables, and at last all of them."""
    yield from reversed(separable)
    if len(separable) > 1:
        yield tuple(name for names in separable for name in names)


def _grown(spec: PermutationSpec, other: PermutationSpec) -> bool:
    """Whether a group has another kind: nothing else than larger kinds can come of more freedom."""
    for group in spec.groups.values():
        twin = other.groups.get(group.id)
        if twin is not None and twin.kind != group.kind:
            return True
    return False
