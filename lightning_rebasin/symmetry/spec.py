"""The permutation spec: which changes of the weights leave the network's function unchanged.

The spec is plain data.  A *group* is a set of interchangeable units (the hidden units of a layer, the channels of a
residual stage).  Groups may nest: a child group has its own set of units inside *every* member of its parent, so that
"heads, then the dimensions within each head" is a parent of size 4 with a child of size 32, and the child carries one
permutation per head.

An :class:`AxisMap` says where the units live in one tensor.  The tensor's dimensions are first split into *sites*
(row-major factors of its shape): a plain weight has one site per dimension, the flattened input of a linear layer after
a convolution has two, (channel, position).  A :class:`Component` then assigns, over some of these sites, a set of
positions to each unit of a group:

    ``index[m]`` = the flat positions, over ``sites``, that move with unit ``m``

and permuting means ``new[index[m]] = old[index[p[m]]]``.  Positions that no component mentions are pinned: they stay.
Whole axes, flatten blocks, concatenations, grouped convolutions, tied axes and heads are all instances of this form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_rebasin.errors import NonFiniteError, SpecError, StateDictError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.symmetry.activations import ActivationSite

#: What a tensor is to the matching objective: parameters count, buffers are only carried along with their units.
Kind = Literal["parameter", "buffer"]


@dataclass(frozen=True)
class Group:
    """A set of ``size`` interchangeable units, one set inside every member of ``parent``.

    Args:
        id: Name of the group, unique in its spec.
        size: Number of units in one set.
        parent: The enclosing group, or ``None`` for a group at the top.
        kind: Which symmetry the units have; ``"permutation"`` is the only one so far.

    Example:
        >>> heads = Group("heads", 4)
        >>> inner = Group("heads/value", 32, heads)
        >>> inner.shape, inner.members, round(inner.log10_symmetries, 2)
        ((4, 32), 128, 141.68)
    """

    id: str
    size: int
    parent: Group | None = None
    kind: Literal["permutation"] = "permutation"

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes from the outermost ancestor to this group: the shape of its permutation tensor."""
        return (*(self.parent.shape if self.parent else ()), self.size)

    @property
    def instances(self) -> int:
        """Number of independent sets: the members of the parent."""
        return self.parent.members if self.parent else 1

    @property
    def members(self) -> int:
        """Number of units counted over all instances."""
        return self.instances * self.size

    @property
    def root(self) -> Group:
        """The outermost ancestor (the group itself at the top)."""
        return self.parent.root if self.parent else self

    @property
    def log10_symmetries(self) -> float:
        """``instances · log10(size!)``."""
        return self.instances * math.lgamma(self.size + 1) / math.log(10)


@dataclass(frozen=True, eq=False)
class Component:
    """Where the units of one group live over some sites of one tensor.

    Args:
        group: Id of the group.
        sites: Numbers of the sites, ascending.
        index: LongTensor ``(members, copies)``; row ``m`` lists the flat positions over ``sites`` that move with unit
            ``m``.  Column ``c`` is the same role for every unit (``[x, −x]`` gives two columns, a flatten block 16).
    """

    group: str
    sites: tuple[int, ...]
    index: Tensor


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How every permutable position of one tensor depends on the groups.

    Args:
        tensor: Name in the state dict.
        sites: For each dimension of the tensor, its row-major factors; ``((50, 16), (500,))`` splits dimension 0.
        components: Which units live where.  Components over overlapping sites share an ancestor group there (a grouped
            convolution's two axes), so that they move the shared site alike.
    """

    tensor: str
    sites: tuple[tuple[int, ...], ...]
    components: tuple[Component, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(math.prod(factors) for factors in self.sites)

    @cached_property
    def site_shape(self) -> tuple[int, ...]:
        """All sites of all dimensions in order."""
        return tuple(size for factors in self.sites for size in factors)

    @cached_property
    def site_dims(self) -> tuple[int, ...]:
        """For each site, the tensor dimension that it belongs to."""
        return tuple(dim for dim, factors in enumerate(self.sites) for _ in factors)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Ids of the groups that move it, each once."""
        return tuple(dict.fromkeys(component.group for component in self.components))

    @cached_property
    def whole_axes(self) -> tuple[tuple[int, str], ...] | None:
        """``(site, group)`` for each site, if every component is one whole site in its own order; else ``None``."""
        found = []
        for sites, components in self.clusters:
            size = self.site_shape[sites[0]]
            index = components[0].index
            single = len(sites) == len(components) == 1 and tuple(index.shape) == (size, 1)
            if not (single and torch.equal(index[:, 0], torch.arange(size))):
                return None
            found.append((sites[0], components[0].group))
        return tuple(found)

    @cached_property
    def clusters(self) -> tuple[tuple[tuple[int, ...], tuple[Component, ...]], ...]:
        """Components that share sites, directly or through others: ``(sites of the cluster, its components)``."""
        found: list[tuple[set[int], list[Component]]] = []
        for component in self.components:
            sites, members = set(component.sites), [component]
            rest = []
            for other_sites, other in found:
                if other_sites & sites:
                    sites, members = sites | other_sites, other + members
                else:
                    rest.append((other_sites, other))
            found = [*rest, (sites, members)]
        return tuple((tuple(sorted(sites)), tuple(members)) for sites, members in found)

    def dims_of(self, group: str) -> tuple[int, ...]:
        """Tensor dimensions on which ``group`` acts."""
        return tuple(sorted({self.site_dims[site] for c in self.components if c.group == group for site in c.sites}))


@dataclass(frozen=True)
class Pin:
    """One dimension of one tensor that cannot be permuted, wholly or in part, and why.

    Args:
        tensor: Name in the state dict.
        dim: Dimension of the tensor.
        pinned: How many of its positions are pinned.
        size: How many positions it has.
        reason: A sentence that a person can read.
        where: The operation of the forward pass that decided it, with the submodule that ran it; empty if none.
    """

    tensor: str
    dim: int
    pinned: int
    size: int
    reason: str
    where: str = ""


@dataclass(frozen=True)
class TensorInfo:
    """Shape of a tensor of the state dict and what it is to the matching objective."""

    shape: tuple[int, ...]
    kind: Kind = "parameter"


@dataclass(frozen=True, eq=False, repr=False)
class PermutationSpec:
    """What may be permuted in a network, where, and what may not and why.

    Made by :func:`~lightning_rebasin.infer_spec`, read with :meth:`load`, or imported from a classical table with
    :meth:`from_table`.

    Args:
        groups: Groups by id, parents before children.
        tensors: Every tensor of the state dict, with its shape and kind.
        maps: Axis maps by tensor name; tensors without one are left as they are.
        pinned: What is pinned and why.
        aliases: Tied tensors: name → the name under which the shared tensor is mapped.
        notes: Warnings of the inference (untouched parameters, operations without a rule).
        activations: For each group, where its units can be observed in a forward pass; empty for imported tables.

    Example:
        >>> spec = PermutationSpec.from_table(
        ...     {"a.weight": ("h", None), "a.bias": ("h",), "b.weight": (None, "h")},
        ...     {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (1, 3)},
        ... )
        >>> list(spec.groups), round(spec.log10_symmetries, 3)
        (['h'], 0.778)
    """

    groups: Mapping[str, Group]
    tensors: Mapping[str, TensorInfo]
    maps: Mapping[str, AxisMap]
    pinned: tuple[Pin, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    activations: Mapping[str, tuple[ActivationSite, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("groups", "tensors", "maps", "aliases", "activations"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        from lightning_rebasin.symmetry.validate import validate_spec

        validate_spec(self)

    @property
    def log10_symmetries(self) -> float:
        """``log10`` of the number of symmetries: ``Σ_groups instances · log10(size!)``."""
        return sum(group.log10_symmetries for group in self.groups.values())

    def children(self, group: str) -> tuple[Group, ...]:
        """Groups directly inside ``group``."""
        return tuple(g for g in self.groups.values() if g.parent is not None and g.parent.id == group)

    def tensors_of(self, group: str) -> tuple[str, ...]:
        """Names of the tensors on which ``group`` itself acts (not its children), aliases left out."""
        return tuple(name for name, m in self.maps.items() if any(c.group == group for c in m.components))

    def pin_identical_buffers(
        self, *states: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]
    ) -> PermutationSpec:
        """The spec for matching these models: what would move a buffer that is the same in two of them is pinned.

        Tables such as sinusoidal positions fit already; moved in one model only, their average would mean nothing.
        Statistics of normalisation layers move in any case.

        Args:
            *states: State dicts of the models, or functions that load them.

        Returns:
            This spec if there is nothing to pin, else a new one that says why in :meth:`explain`.
        """
        from lightning_rebasin.symmetry.buffers import pin_identical_buffers

        return pin_identical_buffers(self, states)

    def check_state(self, state: Mapping[str, Tensor], what: str = "state dict", *, finite: bool = False) -> None:
        """Raise unless ``state`` has exactly the tensors of this spec, in their shapes.

        Args:
            state: Weights to check.
            what: How to call them in the message ("reference", a file name).
            finite: Also refuse NaN and infinity in floating-point tensors.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape; the message names it.
            NonFiniteError: A tensor holds NaN or infinity.
        """
        missing = [name for name in self.tensors if name not in state]
        extra = [name for name in state if name not in self.tensors]
        if missing or extra:
            raise StateDictError(
                f"{what} does not fit the spec: {_named('missing', missing)}{_named('unexpected', extra)}"
                "is it the same architecture, and are prefixes such as 'module.' stripped?"
            )
        for name, info in self.tensors.items():
            if state[name].shape != info.shape:
                raise StateDictError(
                    f"{what}: tensor {name!r} has shape {tuple(state[name].shape)}, the spec says {info.shape}"
                )
            if finite and state[name].is_floating_point() and not bool(torch.isfinite(state[name]).all()):
                raise NonFiniteError(f"{what}: tensor {name!r} holds NaN or infinity")

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Sequence[str | None]],
        shapes: Mapping[str, Sequence[int] | Tensor],
    ) -> PermutationSpec:
        """Import a classical hand-written table ``{tensor: (group or None per dimension)}``.

        Args:
            table: For each tensor the group that permutes each of its dimensions.  Tensors left out are not permuted.
            shapes: Shapes of all tensors: a state dict or ``{name: shape}``.

        Returns:
            The spec.  It is *not* proved: run :func:`~lightning_rebasin.check_equivalence` before trusting it.

        Raises:
            SpecError: A group has two sizes, the table names an unknown tensor, or does not fit its dimensions.
        """
        from lightning_rebasin.symmetry.table import spec_from_table

        return spec_from_table(table, shapes)

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        from lightning_rebasin.symmetry.serialise import spec_to_dict

        return spec_to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PermutationSpec:
        """Inverse of :meth:`to_dict`.

        Raises:
            SpecError: ``data`` is not a spec, is malformed, or is of another version.
        """
        from lightning_rebasin.symmetry.serialise import spec_from_dict

        return spec_from_dict(data)

    def save(self, path: str | Path) -> None:
        """Write the spec as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        atomic_write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> PermutationSpec:
        """Read a spec written by :meth:`save`.

        Raises:
            SpecError: The file is missing or is not a spec.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise SpecError(f"cannot read a permutation spec from {path}: {error}") from error

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, PermutationSpec) and self.to_dict() == other.to_dict())

    __hash__ = object.__hash__

    def explain(self, tensor: str) -> str:
        """What moves in one tensor with which group, what stays, and why, as text.

        Args:
            tensor: Name in the state dict.

        Raises:
            SpecError: There is no such tensor; the message offers the nearest names.
        """
        from lightning_rebasin.symmetry.report import explain_tensor

        return explain_tensor(self, tensor)

    def __str__(self) -> str:
        from lightning_rebasin.symmetry.report import spec_table

        return spec_table(self)

    def __repr__(self) -> str:
        moved = len(self.maps)
        return (
            f"PermutationSpec({len(self.groups)} groups, 10^{self.log10_symmetries:.1f} symmetries, "
            f"{moved} of {len(self.tensors)} tensors permutable)"
        )


def _named(word: str, names: list[str]) -> str:
    """``"missing 'a', 'b' (+3 more); "`` or nothing."""
    if not names:
        return ""
    more = f" (+{len(names) - 3} more)" if len(names) > 3 else ""
    return f"{word} {', '.join(map(repr, names[:3]))}{more}; "
