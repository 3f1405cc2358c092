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

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lightning_rebasin.errors import TraceError

#: What a tensor is to the matching objective: parameters count, buffers are only carried along with their units.
TensorKind = Literal["parameter", "buffer"]
#: ``log10`` of the number of elements of one instance, by kind and size; kinds that are not finite are not listed.
_COUNTED: dict[str, Callable[[int], float]] = {}


def count_kind(kind: str, log10_elements: Callable[[int], float]) -> None:
    """Make known how many elements a finite kind has.

    Args:
        kind: Name of the kind, as in ``Group.kind``.
        log10_elements: ``log10`` of the number of elements of one instance, from the size of the group.
    """
    _COUNTED[kind] = log10_elements


@dataclass(frozen=True)
class Group:
    """A set of ``size`` interchangeable units, one set inside every member of ``parent``.

    Args:
        id: Name of the group, unique in its spec.
        size: Number of units in one set.
        parent: The enclosing group, or ``None`` for a group at the top.
        kind: Which symmetry the units have.  What a kind means is decided in ``symmetry/actions/``.

    Example:
        >>> heads = Group("heads", 4)
        >>> inner = Group("heads/value", 32, heads)
        >>> inner.shape, inner.members, round(inner.log10_symmetries, 2)
        ((4, 32), 128, 141.68)
    """

    id: str
    size: int
    parent: Group | None = None
    kind: str = "permutation"

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
        """``instances · log10(size!)`` for permutations, likewise for other finite kinds; continuous ones count 0."""
        log10_elements = _COUNTED.get(self.kind)
        if log10_elements is None:
            return 0.0
        return self.instances * log10_elements(self.size)


@dataclass(frozen=True, eq=False)
class Component:
    """Where the units of one group live over some sites of one tensor.

    Args:
        group: Id of the group.
        sites: Numbers of the sites, ascending.
        index: LongTensor ``(members, copies)``; row ``m`` lists the flat positions over ``sites`` that move with unit
            ``m``.  Column ``c`` is the same role for every unit (``[x, −x]`` gives two columns, a flatten block 16).
            Kinds that act on several sets of things (a flip moves the inner nodes of a tree, and its leaves) may have
            another number of rows for each instance; the number says which set it is.
    """

    group: str
    sites: tuple[int, ...]
    index: Tensor
    power: int = 1

    def units(self, group: Group) -> int:
        """How many units of each instance of ``group`` lie here: its size, or the size of another set it acts on."""
        return len(self.index) // group.instances


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
        return tuple(
            dim for dim, factors in enumerate(self.sites) for _ in factors
        )

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Ids of the groups that move it, each once."""
        return tuple(
            dict.fromkeys(component.group for component in self.components)
        )

    @cached_property
    def whole_axes(self) -> tuple[tuple[int, str], ...] | None:
        """``(site, group)`` for each site, if every component is one whole site in its own order; else ``None``."""
        found = []
        for sites, components in self.clusters:
            size = self.site_shape[sites[0]]
            index = components[0].index
            single = len(sites) == len(components) == 1
            if not single or tuple(index.shape) != (size, 1):
                return None
            if not torch.equal(index[:, 0], torch.arange(size)):
                return None
            found.append((sites[0], components[0].group))
        return tuple(found)

    @cached_property
    def clusters(
        self,
    ) -> tuple[tuple[tuple[int, ...], tuple[Component, ...]], ...]:
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
        return tuple(
            (tuple(sorted(sites)), tuple(members)) for sites, members in found
        )

    def dims_of(self, group: str) -> tuple[int, ...]:
        """Tensor dimensions on which ``group`` acts."""
        found: set[int] = set()
        for component in self.components:
            if component.group == group:
                found.update(self.site_dims[s] for s in component.sites)
        return tuple(sorted(found))


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
class Importance:
    """How much the entries along one dimension count when two networks are compared.

    The inner product of the matching objective is ``Σ weight · a · b``.  Symmetries must not move units of one weight
    onto units of another.

    Args:
        dim: A dimension of the tensor.
        weights: A positive number for each position along it.
    """

    dim: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class TensorInfo:
    """Shape of a tensor of the state dict and what it is to the matching objective.

    Args:
        shape: Its shape.
        kind: Whether it counts in the objective.
        importance: How much its entries count, if not all alike.
    """

    shape: tuple[int, ...]
    kind: TensorKind = "parameter"
    importance: Importance | None = None


#: How the runs of contractions are counted: per operation, or (format version 1) all of them together.
Numbering = Literal["op", "together"]


@dataclass(frozen=True, eq=False)
class ActivationAddress:
    """One operand of one contraction that carries the units of a group: a place where they can be observed.

    Args:
        ordinal: Which run of the operation in the forward pass, counted from 0.
        op: Its name, for instance ``"aten.addmm"``.
        argument: Which operand, 0 or 1.
        sites: For each dimension of the operand its row-major factors; −1 where the size depends on the input.
        component: The group, the sites over which its units lie, and their flat positions ``(members, copies)``.
        numbering: ``"op"`` counts the runs of this operation; ``"together"``, as files of version 1 do, those of all
            contractions that were known then.
    """

    ordinal: int
    op: str
    argument: int
    sites: tuple[tuple[int, ...], ...]
    component: Component
    numbering: Numbering = "op"

    def units(self, tensor: Tensor) -> Tensor:
        """Arrange the operand by units.

        Args:
            tensor: The operand as it comes, any dtype and device.

        Returns:
            ``(members, copies, samples)``: member ``m`` of the group (all instances of a nested group, in the order of
            ``Permutation.flat``), its copies in the same order for every member (positions after a flatten, the two
            halves of ``[x, −x]``), and everything else (batch, time, places in the image) as samples.  The samples of
            two networks run on the same batch correspond.
        """
        shape: list[int] = []
        for size, factors in zip(tensor.shape, self.sites, strict=True):
            known = math.prod(factor for factor in factors if factor >= 0)
            fixed = -1 not in factors
            if size % known or (fixed and size != known):
                raise TraceError(
                    f"an operand of {self.op} has shape {tuple(tensor.shape)}, expected {self.sites}"
                )
            # At most one factor is unknown before the forward pass: the rest of the size is its.
            shape += [n if n >= 0 else size // known for n in factors]
        return rows_of_units(tensor.reshape(shape), self.component)


def rows_of_units(tensor: Tensor, component: Component) -> Tensor:
    """Arrange a tensor by the units of a component.

    Args:
        tensor: Already split into sites.
        component: Where the units lie.

    Returns:
        ``(members, copies, rest)``.

    Example:
        A 2×3 weight whose columns are the units becomes three rows of two.

        >>> columns = Component("h", (1,), torch.arange(3)[:, None])
        >>> rows_of_units(torch.tensor([[1, 2, 3], [4, 5, 6]]), columns).squeeze(1).tolist()
        [[1, 4], [2, 5], [3, 6]]
    """
    own = component.sites
    front = tensor.movedim(own, tuple(range(len(own))))
    positions = math.prod(front.shape[: len(own)])
    index = component.index.to(tensor.device)
    chosen = front.reshape(positions, -1).index_select(0, index.reshape(-1))
    return chosen.reshape(*index.shape, -1)
