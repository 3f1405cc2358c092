"""Tensors that a file may lack without losing anything, and what stands in for them.

Files leave out what is known: ``transformers`` writes a tied weight under one of its names only, newer versions of a
library no longer store rotary tables and masks.  A file without them is as good as one with them, as long as no
symmetry moves them and no training changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from lightning_rebasin.symmetry import PermutationSpec

#: Ends of names of buffers that a training changes: without them a file is not whole.
_TRAINED = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class Fallbacks:
    """What stands in for tensors that a file lacks.

    Args:
        tied: Name → all names of the same tensor, where it has several.
        values: Buffers that neither a symmetry nor a training changes.
    """

    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The tensors that a file may lack."""
        return frozenset(self.tied) | frozenset(self.values)

    def fill(
        self, state: Mapping[str, Tensor], names: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """The tensors among ``names`` that ``state`` lacks.

        A tied weight of which a file holds no name at all stays missing.

        Example:
            >>> import torch
            >>> fallbacks = Fallbacks({"head": ("embedding", "head"), "embedding": ("embedding", "head")})
            >>> fallbacks.fill({"embedding": torch.ones(2)}, ("embedding", "head"))
            {'head': tensor([1., 1.])}
        """
        found = {}
        for name in names:
            if name in state:
                continue
            others = [n for n in self.tied.get(name, ()) if n in state]
            if others:
                found[name] = state[others[0]]
            elif name in self.values:
                found[name] = self.values[name]
        return found


def fallbacks_of(
    network: nn.Module | None, spec: PermutationSpec | None
) -> Fallbacks:
    """What may be missing in the files of a network.

    Args:
        network: The network, with the buffers that it was built with.
        spec: Its symmetries: a buffer that one of them moves must not be missing.
    """
    if network is None:
        aliases = {} if spec is None else spec.aliases
        return Fallbacks(_tied(list(aliases.items())))
    state = network.state_dict(keep_vars=True)
    parameters = {
        name for name, _ in network.named_parameters(remove_duplicate=False)
    }
    first: dict[int, str] = {}
    pairs = []
    values = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        pairs.append((name, first.setdefault(id(tensor), name)))
        moved = spec is not None and name in spec.maps
        if (
            name not in parameters
            and not moved
            and not name.endswith(_TRAINED)
        ):
            values[name] = tensor.detach().clone()
    return Fallbacks(_tied(pairs), MappingProxyType(values))


def _tied(pairs: list[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    """From ``(name, first name of the same tensor)`` to all names of every tensor that has several.

    Example:
        >>> dict(_tied([("a", "a"), ("b", "a"), ("c", "c")]))
        {'a': ('a', 'b'), 'b': ('a', 'b')}
    """
    names: dict[str, list[str]] = {}
    for name, origin in pairs:
        members = names.setdefault(origin, [origin])
        if name != origin:
            members.append(name)
    several = [tuple(group) for group in names.values() if len(group) > 1]
    return MappingProxyType({name: g for g in several for name in g})
