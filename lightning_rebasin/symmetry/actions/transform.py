"""A transform: one element for every group of a spec, and what all of them together do to a state dict.

``T.apply(state)`` first gathers: every permutation group moves its units, and whatever lies inside them moves along.
Then each other kind acts in the new order.  So in a tanh network with a sign inside every hidden unit

    new[i] = sign[i] · old[p[i]]

and the products follow: ``(p∘q)`` of a nested group is, in the instance that ends at place ``h``,

    p_child[h] ∘ q_child[flat_p_parent[h]]

because ``q`` acted before ``p`` moved the instance from ``flat_p_parent[h]`` to ``h``.  Only permutations may have
groups inside them; for any other parent "inside unit h" would mean nothing after a rotation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast, final

import torch
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.gather import gather_units
from lightning_rebasin.symmetry.actions.transform_file import (
    Stored,
    read_transform,
    write_transform,
)
from lightning_rebasin.symmetry.spec.gauge import fold, has_gauge
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component, Group


class Transform(ABC):
    """One symmetry of a network: an element of every group of a spec.

    Made by :meth:`identity`, :meth:`random`, :meth:`of` or :meth:`load`, which return a
    :class:`~lightning_rebasin.Permutation` where all groups are permutations.

    Args:
        spec: The spec.
        elements: For each group id its element; groups left out have the identity.

    Raises:
        TransformError: A tensor is not an element of its group, names an unknown group, or a group lies inside one that
            is not a permutation.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)})
        >>> Transform.identity(spec)
        Permutation(1 groups, 0.0% of 3 units moved)
    """

    #: What is raised, and how files are marked; a pure permutation has its own.
    error: ClassVar[type[TransformError]] = TransformError
    format: ClassVar[str] = "lightning-rebasin-transform"
    kept_as: ClassVar[str] = "elements"
    #: The class for specs whose groups are all of some kinds; any other spec gets :class:`MixedTransform`.
    _classes: ClassVar[dict[frozenset[str], type[Transform]]] = {}

    def __init_subclass__(
        cls, kinds: Collection[str] = (), **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if kinds:
            Transform._classes[frozenset(kinds)] = cls

    def __init__(
        self, spec: PermutationSpec, elements: Mapping[str, Tensor]
    ) -> None:
        unknown = set(elements) - set(spec.groups)
        if unknown:
            raise self.error(f"the spec has no group {sorted(unknown)[0]!r}")
        self.spec = spec
        checked: dict[str, Tensor] = {}
        for group in spec.groups.values():
            action = action_of(group)
            if (
                group.parent is not None
                and not action_of(group.parent).rearranges
            ):
                raise TransformError(
                    f"group {group.id!r} lies inside {group.parent.id!r}, which is not a permutation: its instances "
                    "would have no place"
                )
            given = elements.get(group.id)
            if given is None:
                checked[group.id] = action.identity(group)
            else:
                checked[group.id] = action.check(group, given)
        #: The element of every group, see :mod:`~lightning_rebasin.symmetry.actions.action`.
        self.elements: Mapping[str, Tensor] = MappingProxyType(checked)
        self._flat: dict[str, Tensor] = {}

    @classmethod
    def of(cls, spec: PermutationSpec, elements: Mapping[str, Tensor]) -> Self:
        """The transform with these elements, of the class that fits the kinds of the spec."""
        if cls is not Transform:
            return cls(spec, elements)
        kinds = frozenset(
            group.kind for group in spec.groups.values()
        ) or frozenset(("permutation",))
        fitting = Transform._classes.get(kinds, MixedTransform)
        return cast("Self", fitting(spec, elements))

    @classmethod
    def identity(cls, spec: PermutationSpec) -> Self:
        """The transform that changes nothing."""
        return cls.of(spec, {})

    @classmethod
    def random(cls, spec: PermutationSpec, generator: torch.Generator) -> Self:
        """A random symmetry: a random element of every group.

        Args:
            spec: The spec to draw from.
            generator: CPU generator; the same state gives the same transform.
        """
        groups = spec.groups.values()
        return cls.of(
            spec,
            {
                group.id: action_of(group).random(group, generator)
                for group in groups
            },
        )

    def only(self, groups: Iterable[str]) -> Self:
        """The elements of some groups, the identity for all others."""
        return type(self)(
            self.spec, {group: self.elements[group] for group in groups}
        )

    def __getitem__(self, group: str) -> Tensor:
        return self.elements[group]

    def flat(self, group: str) -> Tensor:
        """LongTensor ``(members,)``: the order of all members of ``group`` with its ancestors' moves included.

        A group that is not a permutation keeps the order inside each of its instances.
        """
        if group not in self._flat:
            g = self.spec.groups[group]
            if action_of(g).rearranges:
                index = self.elements[group].reshape(g.instances, g.size)
            else:
                index = torch.arange(g.size).expand(g.instances, g.size)
            if g.parent is not None:
                index = index + self.flat(g.parent.id)[:, None] * g.size
            self._flat[group] = index.reshape(-1)
        return self._flat[group]

    @property
    def distances(self) -> Mapping[str, float]:
        """How far from the identity the element of each group is, from 0 to 1."""
        groups = self.spec.groups.values()
        return {
            g.id: action_of(g).distance(g, self.elements[g.id]) for g in groups
        }

    @property
    def moved(self) -> Mapping[str, float]:
        """How much of each group changes, from 0 to 1; of a permutation the fraction of members that change place."""
        return self.distances

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return not any(self.distances.values())

    @property
    def exact(self) -> bool:
        """Whether applying the transform and then its inverse gives back the same bits."""
        if has_gauge(self.spec):
            return False
        return all(
            action_of(group).exact for group in self.spec.groups.values()
        )

    def inverse(self) -> Self:
        """The transform that undoes this one."""
        found = {}
        for group in self.spec.groups.values():
            undone = action_of(group).inverse(group, self.elements[group.id])
            # The inverse works in the old order: the instance that is now at h was at flat[h].
            found[group.id] = _instances(
                group, undone, self._parent_order(group, inverse=True)
            )
        return type(self)(self.spec, found)

    def compose(self, other: Transform) -> Self:
        """``self ∘ other``: ``p.compose(q).apply(s) == p.apply(q.apply(s))``.

        Raises:
            TransformError: The two belong to different specs.
        """
        if other.spec is not self.spec and other.spec != self.spec:
            word = type(self).__name__.lower()
            raise self.error(f"{word}s of different specs cannot be composed")
        found = {}
        for group in self.spec.groups.values():
            carried = _instances(
                group, other.elements[group.id], self._parent_order(group)
            )
            found[group.id] = action_of(group).compose(
                group, self.elements[group.id], carried
            )
        return type(self)(self.spec, found)

    def _parent_order(
        self, group: Group, *, inverse: bool = False
    ) -> Tensor | None:
        """Where each instance of a group came from (or goes to); ``None`` at the top."""
        if group.parent is None:
            return None
        order = self.flat(group.parent.id)
        return torch.argsort(order) if inverse else order

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Transform parameters *and* buffers into a new dict; ``state`` is left alone.

        Args:
            state: Weights with exactly the tensors of the spec, any dtype and device.

        Returns:
            A new dict in the order of ``state``; tensors that share storage (tied weights) share it again.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape.
        """
        self.spec.check_state(state)
        versions = getattr(state, "_metadata", None)
        if has_gauge(self.spec):
            state = fold(self.spec, state)
        done: OrderedDict[str, Tensor] = OrderedDict()
        if versions is not None:
            # load_state_dict of some modules insists on the versions that state_dict stores beside the tensors.
            done._metadata = versions  # type: ignore[attr-defined]
        for name, tensor in state.items():
            origin = self.spec.aliases.get(name)
            if (
                origin is not None
                and origin in done
                and state[origin].data_ptr() == tensor.data_ptr()
            ):
                done[name] = done[origin]
            else:
                done[name] = self.apply_to(name, tensor)
        return done

    def apply_to(self, name: str, tensor: Tensor) -> Tensor:
        """Transform one tensor of the state dict into a new one.

        Args:
            name: Its name.
            tensor: Its value.
        """
        axis_map = self.spec.maps.get(self.spec.aliases.get(name, name))
        return (
            tensor.clone()
            if axis_map is None
            else self.apply_map(tensor, axis_map)
        )

    @abstractmethod
    def apply_map(self, tensor: Tensor, axis_map: AxisMap) -> Tensor:
        """Transform one tensor whose units lie where ``axis_map`` says, into a new one."""

    def __eq__(self, other: object) -> bool:
        if (
            not isinstance(other, Transform)
            or self.elements.keys() != other.elements.keys()
        ):
            return False
        return all(
            torch.equal(own, other.elements[g])
            for g, own in self.elements.items()
        )

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        moved = self.moved
        total = sum(g.members for g in self.spec.groups.values())
        share = sum(
            moved[g.id] * g.members for g in self.spec.groups.values()
        ) / max(total, 1)
        return f"{type(self).__name__}({len(moved)} groups, {share:.1%} of {total} units moved)"

    def save(self, path: str | Path) -> None:
        """Write the transform with its spec, atomically; the file loads without running any code.

        Args:
            path: The file; ``.safetensors`` gives that format, any other name that of ``torch.save``.

        Raises:
            OutputError: The folder does not exist or cannot be written.
            MissingExtraError: safetensors is asked for, but not installed.
        """
        stored = Stored(self.format, self.spec, self.elements)
        write_transform(path, stored, self.kept_as)

    @classmethod
    def load(
        cls, path: str | Path, spec: PermutationSpec | None = None
    ) -> Self:
        """Read a transform, or a permutation, written by :meth:`save`.

        Args:
            path: The file.
            spec: If given, the stored spec must equal it, and the result refers to it.

        Raises:
            TransformError: The file is missing, is not a transform, or belongs to another spec.
        """
        formats = {MixedTransform.format: MixedTransform.kept_as}
        for known in Transform._classes.values():
            formats[known.format] = known.kept_as
        word = cls.__name__.lower()
        stored = read_transform(path, formats, word, cls.error)
        if spec is not None and stored.spec != spec:
            raise cls.error(f"the {word} in {path} belongs to another spec")
        try:
            return cls.of(spec or stored.spec, stored.elements)
        except TransformError as error:
            raise type(error)(f"{path}: {error}") from error


@final
class MixedTransform(Transform):
    """A transform of a spec with any kinds of groups; :meth:`Transform.of` chooses it."""

    def apply_map(self, tensor: Tensor, axis_map: AxisMap) -> Tensor:
        """Gather by all permutations, then let the other kinds act in the new order."""
        carried = carried_map(axis_map, self.spec.groups)
        gathered = gather_units(tensor, carried, self.flat)
        return act(self.spec, self.elements, gathered, axis_map)


def act(
    spec: PermutationSpec,
    elements: Mapping[str, Tensor],
    tensor: Tensor,
    axis_map: AxisMap,
) -> Tensor:
    """Let all groups that do not rearrange act on one tensor; differentiable in the tensor and in the elements.

    Args:
        spec: The spec.
        elements: The element of each of these groups; groups left out leave the tensor as it is.
        tensor: In the shape of ``axis_map``.
        axis_map: Where the units lie.
    """
    for component in axis_map.components:
        group = spec.groups[component.group]
        element = elements.get(group.id)
        if element is not None and not action_of(group).rearranges:
            tensor = _act_on(group, element, tensor, axis_map, component)
    return tensor


def _act_on(
    group: Group,
    element: Tensor,
    tensor: Tensor,
    axis_map: AxisMap,
    component: Component,
) -> Tensor:
    """One group acts on its units, in place where they lie."""
    sites = component.sites
    leading = tuple(range(len(sites)))
    front = tensor.reshape(axis_map.site_shape).movedim(sites, leading)
    positions = math.prod(front.shape[: len(sites)])
    # (positions, rest): e.g. a 2×3 weight whose 3 columns are units becomes 3 rows of 2
    rows = front.reshape(positions, -1)
    index = component.index.reshape(-1)
    whole = len(index) == positions and torch.equal(
        index, torch.arange(positions)
    )
    index = index.to(tensor.device)
    # The usual case needs no copy: the units are all positions, in their order.
    chosen = rows if whole else rows.index_select(0, index)
    units = chosen.reshape(group.instances, component.units(group), -1)
    changed = action_of(group).apply(group, element, units, component.power)
    changed = changed.reshape(len(index), -1)
    rows = changed if whole else rows.index_copy(0, index, changed)
    found = rows.reshape(front.shape).movedim(leading, sites)
    return found.reshape(tensor.shape)


def carried_map(axis_map: AxisMap, groups: Mapping[str, Group]) -> AxisMap:
    """The map as permutations see it: what lies inside a unit, whatever its kind, moves along with the unit.

    Three positions of a sign group in each of two units are two units of three positions.

    Args:
        axis_map: Where the units of all kinds lie.
        groups: The groups by id.
    """
    carried = []
    for component in axis_map.components:
        group = groups[component.group]
        if action_of(group).rearranges:
            carried.append(component)
        elif group.parent is not None:
            index = component.index.reshape(group.parent.members, -1)
            carried.append(
                replace(component, group=group.parent.id, index=index)
            )
    return replace(axis_map, components=tuple(carried))


def _instances(group: Group, element: Tensor, order: Tensor | None) -> Tensor:
    """The element with its instances in another order."""
    if order is None:
        return element
    inner = element.shape[len(group.shape) - 1 :]
    return element.reshape(group.instances, *inner)[order].reshape(
        element.shape
    )
