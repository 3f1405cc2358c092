"""Permutations of a network's units: the elements of the symmetry group that a spec describes.

One LongTensor per group, ``new[i] = old[p[i]]``.  For a nested group the tensor has the sizes of its ancestors in
front: ``p[h]`` is the order of the units inside the *new* position ``h`` of the parent.  It is handy to look at the
*flat* form, one index over all members of a group with the ancestors' moves included::

    flat_child[h · n + i] = flat_parent[h] · n + p_child[h, i]

because flat permutations compose and invert like ordinary ones.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from lightning_rebasin.errors import PermutationError
from lightning_rebasin.files import atomic_path
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component, Group

FORMAT = "lightning-rebasin-permutation"


class Permutation:
    """One symmetry of a network: an order of the units of every group of a spec.

    Args:
        spec: The spec whose groups are permuted.
        orders: For each group id a LongTensor of the group's ``shape``; the last dimension holds permutations of
            ``range(size)``.  Groups left out keep their order.

    Raises:
        PermutationError: A tensor is not a permutation, or names an unknown group.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)})
        >>> p = Permutation(spec, {"h": torch.tensor([2, 0, 1])})
        >>> p.apply({"w": torch.tensor([[10.0], [20.0], [30.0]])})["w"].flatten().tolist()
        [30.0, 10.0, 20.0]
        >>> p.compose(p.inverse()).is_identity
        True
    """

    def __init__(self, spec: PermutationSpec, orders: Mapping[str, Tensor]) -> None:
        unknown = set(orders) - set(spec.groups)
        if unknown:
            raise PermutationError(f"the spec has no group {sorted(unknown)[0]!r}")
        self.spec = spec
        checked = {
            g.id: _check_order(g, orders[g.id]) if g.id in orders else _identity(g)
            for g in spec.groups.values()
        }
        self.orders: Mapping[str, Tensor] = MappingProxyType(checked)
        self._flat: dict[str, Tensor] = {}

    @classmethod
    def identity(cls, spec: PermutationSpec) -> Permutation:
        """The permutation that changes nothing."""
        return cls(spec, {})

    @classmethod
    def random(cls, spec: PermutationSpec, generator: torch.Generator) -> Permutation:
        """A uniformly random symmetry.

        Args:
            spec: The spec to draw from.
            generator: CPU generator; the same state gives the same permutation.
        """
        orders = {}
        for g in spec.groups.values():
            rows = [torch.randperm(g.size, generator=generator) for _ in range(g.instances)]
            orders[g.id] = torch.stack(rows).reshape(g.shape)
        return cls(spec, orders)

    @classmethod
    def from_flat(cls, spec: PermutationSpec, flat: Mapping[str, Tensor]) -> Permutation:
        """Inverse of :meth:`flat`: build a permutation from one flat index per group.

        Raises:
            PermutationError: A flat index breaks the nesting of the groups.
        """
        if unknown := set(flat) - set(spec.groups):
            raise PermutationError(f"the spec has no group {sorted(unknown)[0]!r}")
        orders = {}
        for g in spec.groups.values():
            if g.id not in flat:
                continue
            if flat[g.id].numel() != g.members:
                raise PermutationError(
                    f"group {g.id!r}: the flat index has {flat[g.id].numel()} entries, not {g.members}"
                )
            if g.parent is None:
                orders[g.id] = flat[g.id].reshape(g.size)
                continue
            index = flat[g.id].cpu().reshape(g.instances, g.size)
            if not bool((index // g.size == index[:, :1] // g.size).all()):
                raise PermutationError(
                    f"the flat index of group {g.id!r} does not keep its parent's members together"
                )
            orders[g.id] = (index % g.size).reshape(g.shape)
        permutation = cls(spec, orders)
        for name, index in flat.items():
            if spec.groups[name].parent is None:
                continue  # checked as an order already
            if not torch.equal(permutation.flat(name), index.reshape(-1).cpu()):
                raise PermutationError(
                    f"the flat index of group {name!r} does not keep its parent's members together"
                )
        return permutation

    def flat(self, group: str) -> Tensor:
        """LongTensor ``(members,)``: the order of all members of ``group`` with its ancestors' moves included."""
        if group not in self._flat:
            g = self.spec.groups[group]
            index = self.orders[group].reshape(g.instances, g.size)
            if g.parent is not None:
                index = index + self.flat(g.parent.id)[:, None] * g.size
            self._flat[group] = index.reshape(-1)
        return self._flat[group]

    def __getitem__(self, group: str) -> Tensor:
        return self.orders[group]

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return all(bool((o == torch.arange(o.shape[-1])).all()) for o in self.orders.values())

    @property
    def moved(self) -> Mapping[str, float]:
        """Fraction of the members of each group that change place."""
        return {
            g: float((self.flat(g) != torch.arange(len(self.flat(g)))).double().mean())
            for g in self.orders
        }

    def inverse(self) -> Permutation:
        """The permutation that undoes this one."""
        return Permutation.from_flat(
            self.spec, {g: torch.argsort(self.flat(g)) for g in self.orders}
        )

    def compose(self, other: Permutation) -> Permutation:
        """``self ∘ other``: ``p.compose(q).apply(s) == p.apply(q.apply(s))``.

        Raises:
            PermutationError: The two belong to different specs.
        """
        if other.spec is not self.spec and other.spec != self.spec:
            raise PermutationError("permutations of different specs cannot be composed")
        return Permutation.from_flat(
            self.spec, {g: other.flat(g)[self.flat(g)] for g in self.orders}
        )

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Permute parameters *and* buffers into a new dict; ``state`` is left alone.

        Args:
            state: Weights with exactly the tensors of the spec, any dtype and device.

        Returns:
            A new dict in the order of ``state``; tensors that share storage (tied weights) share it again.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape.
        """
        self.spec.check_state(state)
        done: OrderedDict[str, Tensor] = OrderedDict()
        if (versions := getattr(state, "_metadata", None)) is not None:
            # load_state_dict of some modules insists on the versions that state_dict stores beside the tensors.
            done._metadata = versions  # type: ignore[attr-defined]
        for name, tensor in state.items():
            origin = self.spec.aliases.get(name)
            if (
                origin is not None
                and state[origin].data_ptr() == tensor.data_ptr()
                and origin in done
            ):
                done[name] = done[origin]
                continue
            axis_map = self.spec.maps.get(origin or name)
            done[name] = (
                tensor.clone() if axis_map is None else permute_tensor(tensor, axis_map, self)
            )
        return done

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Permutation)
            and self.orders.keys() == other.orders.keys()
            and all(torch.equal(o, other.orders[g]) for g, o in self.orders.items())
        )

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        moved = self.moved
        total = sum(g.members for g in self.spec.groups.values())
        share = sum(moved[g.id] * g.members for g in self.spec.groups.values()) / max(total, 1)
        return f"Permutation({len(moved)} groups, {share:.1%} of {total} units moved)"

    def save(self, path: str | Path) -> None:
        """Write the permutation with its spec, atomically; the file loads with ``weights_only=True``.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        payload = {
            "format": FORMAT,
            "spec": json.dumps(self.spec.to_dict()),
            "orders": dict(self.orders),
        }
        with atomic_path(path) as temporary:
            torch.save(payload, temporary)

    @classmethod
    def load(cls, path: str | Path, spec: PermutationSpec | None = None) -> Permutation:
        """Read a permutation written by :meth:`save`.

        Args:
            path: The file.
            spec: If given, the stored spec must equal it, and the result refers to it.

        Raises:
            PermutationError: The file is missing, is not a permutation, or belongs to another spec.
        """
        try:
            payload = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises a dozen unrelated types on foreign files
            raise PermutationError(f"cannot read a permutation from {path}: {error}") from error
        if not isinstance(payload, dict) or payload.get("format") != FORMAT:
            raise PermutationError(f"{path} is not a permutation file")
        try:
            stored = PermutationSpec.from_dict(json.loads(payload["spec"]))
            orders = dict(payload["orders"])
        except (
            KeyError,
            TypeError,
            ValueError,
            RecursionError,
        ) as error:  # SpecError and JSON errors are ValueErrors
            raise PermutationError(f"{path} is not a valid permutation file: {error!r}") from error
        if spec is not None and stored != spec:
            raise PermutationError(f"the permutation in {path} belongs to another spec")
        return cls(spec or stored, orders)


def permute_tensor(tensor: Tensor, axis_map: AxisMap, permutation: Permutation) -> Tensor:
    """Move the positions of one tensor: ``new[index[m]] = old[index[flat[m]]]`` for every component.

    Args:
        tensor: Any dtype and device, in the shape of ``axis_map``.
        axis_map: Where the units live.
        permutation: The orders of the units.

    Returns:
        A new tensor.
    """
    result = tensor
    for sites, components in axis_map.clusters:
        index = cluster_index(axis_map, sites, components, permutation).to(tensor.device)
        dims = {axis_map.site_dims[site] for site in sites}
        if len(dims) == 1 and len(sites) == len(axis_map.sites[dim := dims.pop()]):
            result = result.index_select(dim, index)
        else:
            split = result.reshape(axis_map.site_shape)
            front = split.movedim(sites, tuple(range(len(sites))))
            gathered = front.reshape(len(index), -1).index_select(0, index)
            result = (
                gathered.reshape(front.shape)
                .movedim(tuple(range(len(sites))), sites)
                .reshape(tensor.shape)
            )
    return result.clone() if result is tensor else result.contiguous()


def cluster_index(
    axis_map: AxisMap,
    sites: tuple[int, ...],
    components: tuple[Component, ...],
    permutation: Permutation,
) -> Tensor:
    """Gather index over the sites of one cluster: ``new.flat[x] = old.flat[index[x]]``.

    Args:
        axis_map: The map that the cluster belongs to.
        sites: Its sites, ascending.
        components: Its components.
        permutation: The orders of the units.

    Returns:
        LongTensor ``(product of the site sizes,)``.
    """
    shape = tuple(axis_map.site_shape[site] for site in sites)
    by_sites: dict[tuple[int, ...], list[Component]] = {}
    for component in components:
        by_sites.setdefault(component.sites, []).append(component)
    coordinates = {
        site: torch.arange(shape[i]).reshape(_along(i, len(sites))) for i, site in enumerate(sites)
    }
    for own, members in by_sites.items():
        sizes = tuple(axis_map.site_shape[site] for site in own)
        index = torch.arange(math.prod(sizes))
        named = torch.zeros(math.prod(sizes), dtype=torch.bool)
        for c in members:
            index[c.index.reshape(-1)] = c.index[permutation.flat(c.group)].reshape(-1)
            named[c.index.reshape(-1)] = True
        if len(by_sites) == 1:
            return index
        view = [axis_map.site_shape[site] if site in own else 1 for site in sites]
        for site, coordinate in zip(
            own, torch.unravel_index(index.reshape(sizes), sizes), strict=True
        ):
            # positions that these components do not name are left to the others
            coordinates[site] = torch.where(
                named.reshape(view), coordinate.reshape(view), coordinates[site]
            )
    flat = torch.zeros((), dtype=torch.long)
    for site, size in zip(sites, shape, strict=True):
        flat = flat * size + coordinates[site]
    return flat.expand(shape).reshape(-1)


def _along(position: int, ndim: int) -> tuple[int, ...]:
    return tuple(-1 if i == position else 1 for i in range(ndim))


def _identity(group: Group) -> Tensor:
    order = torch.arange(group.size)
    return order if group.parent is None else order.expand(group.shape).contiguous()


def _check_order(group: Group, order: Tensor) -> Tensor:
    if (
        not isinstance(order, Tensor)
        or order.is_floating_point()
        or order.is_complex()
        or order.dtype is torch.bool
    ):
        raise PermutationError(
            f"group {group.id!r}: the order must be a LongTensor, not {_kind(order)}"
        )
    order = order.detach().to("cpu", torch.long)
    if order.shape != group.shape:
        raise PermutationError(
            f"group {group.id!r}: order has shape {tuple(order.shape)}, expected {group.shape}"
        )
    if not (np.sort(order.numpy(), -1) == np.arange(group.size)).all():
        raise PermutationError(
            f"group {group.id!r}: the order is not a permutation of range({group.size})"
        )
    return order.clone()


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
