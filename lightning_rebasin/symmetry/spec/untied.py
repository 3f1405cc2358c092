"""What untying would allow, and the canonical gauge of untied weights.

A spec may know a second one, :attr:`PermutationSpec.untied`: that of the same network in which a tied weight has a
tensor for each of its uses.  It has the same tensors, fewer aliases and larger groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, final

from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.fields import SpecFields
from lightning_rebasin.symmetry.spec.gauge import canonical_state

S = TypeVar("S", bound=SpecFields)


@final
@dataclass(frozen=True, eq=False)
class Untied(Generic[S]):
    """Canonical weights in which some tied tensors have become separate ones.

    Args:
        state: The weights, under the same names.
        names: The names that have tensors of their own now; empty if untying would have allowed nothing.
        spec: The spec of the untied network, to match and average such weights with.
    """

    state: dict[str, Tensor]
    names: tuple[str, ...]
    spec: S


def canonical_untied(
    spec: S, untied: S | None, state: Mapping[str, Tensor]
) -> Untied[S]:
    """Weights of the same function in the canonical gauge of the untied network.

    Args:
        spec: The spec of the network as it is.
        untied: What untying would allow, if anything.
        state: Its weights, tied or untied already.
    """
    if untied is None:
        return Untied(canonical_state(spec, state), (), spec)
    names = untied_names(spec, untied)
    found = canonical_state(untied, with_own_tensors(state, names))
    return Untied(found, names, untied)


def untied_names(spec: SpecFields, untied: SpecFields) -> tuple[str, ...]:
    """The names that are tied in one spec and not in the other."""
    return tuple(name for name in spec.aliases if name not in untied.aliases)


def with_own_tensors(
    state: Mapping[str, Tensor], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """A state in which some names share no memory with others."""
    return {
        name: tensor.clone() if name in names else tensor
        for name, tensor in state.items()
    }


def check_untied(spec: SpecFields) -> None:
    """Raise unless what untying would allow belongs to the same network.

    Raises:
        SpecError: It has other tensors, unties nothing, or knows a third spec.
    """
    untied = spec.untied
    if untied is None:
        return
    if dict(untied.tensors) != dict(spec.tensors):
        raise SpecError("the untied spec has other tensors than the tied one")
    fewer = set(untied.aliases.items()) < set(spec.aliases.items())
    if not fewer or untied.untied is not None:
        raise SpecError(
            "the untied spec must have fewer tied tensors than the tied one, and no untied spec itself"
        )
