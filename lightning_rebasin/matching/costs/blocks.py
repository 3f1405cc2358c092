"""Dense blocks: every spec reduced to plain arrays whose axes are whole groups.

The matching objective is ``Σ_tensors ⟨A, π(B)⟩``.  An axis map may split, concatenate and tie axes in many ways, but
each tensor falls apart into *blocks*: sub-arrays in which every axis is either the complete list of one group's
members, or free.  A plain convolution weight is one block ``(out group, in group, free)``; the input of a dense layer
after a flatten is ``(out group, channel group, free)``; a concatenated input axis gives one block per segment.

Axes that move together in a way no single group describes (the two channel axes of a grouped convolution share their
group of groups) become one *joint* axis, whose gather index depends on several groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from lightning_rebasin.symmetry.actions.gather import cluster_index
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component

#: Flat order of each group: ``new member i = old member flats[group][i]``.
Flats = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of one merged axis: all members of one group (``copies`` positions each), or positions of no group.

    Args:
        groups: Empty (free), one group, or all groups of a joint axis.
        positions: Positions along the merged axis, in member order.
        copies: Positions per member.
        whole: Whether the positions are the whole axis in its own order.
        joint: For a joint axis, what its gather index is computed from.
    """

    groups: tuple[str, ...]
    positions: Tensor
    copies: int
    whole: bool
    joint: tuple[AxisMap, tuple[int, ...], tuple[Component, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """One dense block of one tensor.

    Args:
        tensor: Name in the state dict.
        site_shape: Shape after splitting the tensor's dimensions into sites.
        merged: Sites of each merged axis, in the order of the axes.
        segments: The part of each merged axis that the block covers.
    """

    tensor: str
    site_shape: tuple[int, ...]
    merged: tuple[tuple[int, ...], ...]
    segments: tuple[Segment, ...]

    @cached_property
    def axes(self) -> tuple[tuple[str, ...], ...]:
        """For each dimension of :meth:`take`'s result, the groups it depends on (empty: free)."""
        found: list[tuple[str, ...]] = []
        for segment in self.segments:
            found.append(segment.groups)
            if segment.groups and segment.copies > 1:
                found.append(())
        return tuple(found)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Length of each dimension of :meth:`take`'s result."""
        found: list[int] = []
        for segment in self.segments:
            found.append(len(segment.positions) // segment.copies)
            if segment.groups and segment.copies > 1:
                found.append(segment.copies)
        return tuple(found)

    @cached_property
    def groups(self) -> frozenset[str]:
        """Every group on which the block depends."""
        return frozenset(group for axis in self.axes for group in axis)

    def joint_segment(self, axis: int) -> Segment | None:
        """The joint segment behind dimension ``axis``, if it is one."""
        position = -1
        for segment in self.segments:
            position += 1
            if position == axis:
                return segment if segment.joint else None
            if segment.groups and segment.copies > 1:
                position += 1
        return None

    @cached_property
    def plain(self) -> bool:
        """Whether the block is the whole tensor as it stands."""
        sites = tuple(site for sites in self.merged for site in sites)
        return (
            sites == tuple(range(len(self.site_shape)))
            and self.lengths == self.site_shape
            and all(segment.whole for segment in self.segments)
        )

    def take(self, tensor: Tensor) -> Tensor:
        """The block of ``tensor`` with one dimension per entry of :attr:`axes`; a view where possible."""
        if self.plain:
            return tensor.reshape(self.site_shape)
        order = tuple(site for sites in self.merged for site in sites)
        split = tensor.reshape(self.site_shape).permute(order)
        split = split.reshape(
            [
                math.prod(self.site_shape[site] for site in sites)
                for sites in self.merged
            ]
        )
        for dim, segment in enumerate(self.segments):
            split = (
                split
                if segment.whole
                else _select(split, dim, segment.positions)
            )
        return split.reshape(self.lengths)

    def index(self, axis: int, flats: Flats) -> Tensor:
        """Gather index of dimension ``axis`` under ``flats``: ``permuted = block.index_select(axis, index)``."""
        segment = self.joint_segment(axis)
        if segment is None or segment.joint is None:
            return flats[self.axes[axis][0]]
        axis_map, sites, components = segment.joint
        return cluster_index(
            axis_map, sites, components, lambda group: flats[group].cpu()
        )


def objective_tensors(spec: PermutationSpec) -> tuple[str, ...]:
    """Tensors that count in the objective: parameters, each tied one once; never running statistics."""
    return tuple(
        name
        for name, info in spec.tensors.items()
        if info.kind == "parameter" and name not in spec.aliases
    )


def telling_tensors(spec: PermutationSpec) -> tuple[str, ...]:
    """Tensors of the objective by which one sees whether two networks are alike: those of two or more axes.

    The gains of norms are all near 1, which makes any two networks look alike; biases are few.  A network that has
    nothing else is compared by them.
    """
    names = objective_tensors(spec)
    matrices = [n for n in names if len(spec.tensors[n].shape) > 1]
    return tuple(matrices) or names


def blocks_of(spec: PermutationSpec) -> tuple[Block, ...]:
    """All blocks of every tensor of the objective that is mapped; those without any group are its fixed parts."""
    return tuple(
        block
        for name in objective_tensors(spec)
        if name in spec.maps
        for block in _split(spec.maps[name])
    )


def _split(axis_map: AxisMap) -> Iterator[Block]:
    # A weight (6, 3, 3) whose 6 inputs are 2 units of one group and 4 of another falls apart into two blocks,
    # (2, 3, 3) and (4, 3, 3); a second axis of two parts would make four.
    owner: dict[int, int] = {
        site: n
        for n, (sites, _) in enumerate(axis_map.clusters)
        for site in sites
    }
    merged: list[tuple[int, ...]] = []
    choices: list[tuple[Segment, ...]] = []
    done: set[int] = set()
    for site, size in enumerate(axis_map.site_shape):
        if site not in owner:
            merged.append((site,))
            choices.append((Segment((), torch.arange(size), 1, whole=True),))
        elif owner[site] not in done:
            done.add(owner[site])
            sites, components = axis_map.clusters[owner[site]]
            merged.append(sites)
            choices.append(tuple(_segments(axis_map, sites, components)))
    for segments in product(*choices):
        yield Block(
            axis_map.tensor, axis_map.site_shape, tuple(merged), segments
        )


def _segments(
    axis_map: AxisMap,
    sites: tuple[int, ...],
    components: tuple[Component, ...],
) -> Iterator[Segment]:
    total = math.prod(axis_map.site_shape[site] for site in sites)
    # Groups that lie across the sites in different ways can only be gathered together.
    if any(c.sites != sites for c in components):
        groups = tuple(dict.fromkeys(c.group for c in components))
        yield Segment(
            groups,
            torch.arange(total),
            1,
            whole=True,
            joint=(axis_map, sites, components),
        )
        return
    # What no component covers belongs to no group and stays where it is.
    rest = torch.ones(total, dtype=torch.bool)
    for c in components:
        rest[c.index.reshape(-1)] = False
        positions = c.index.reshape(-1)
        whole = len(positions) == total and torch.equal(
            positions, torch.arange(total)
        )
        yield Segment((c.group,), positions, c.index.shape[1], whole)
    if bool(rest.any()):
        yield Segment((), rest.nonzero().reshape(-1), 1, whole=False)


def _select(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """``index_select`` that stays a view for a contiguous range."""
    if not len(positions):
        return tensor.narrow(dim, 0, 0)
    # Parts of a concatenation are contiguous ranges: no copy is needed for them.
    start = int(positions[0])
    if torch.equal(positions, torch.arange(start, start + len(positions))):
        return tensor.narrow(dim, start, len(positions))
    return tensor.index_select(dim, positions.to(tensor.device))
