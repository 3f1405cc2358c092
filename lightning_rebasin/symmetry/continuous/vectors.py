"""What a walk knows of the vectors of one group.

A group walks through the tape as a *vector*: its units are the coordinates.  A matrix A on the coordinates acts on what
writes the vector as A, and on what reads it as A⁻ᵀ; :class:`~.systems.Parities` keep the two apart, for every copy of
the units in every tensor of the state (:mod:`.roles`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from lightning_rebasin.symmetry.continuous.gains import Gains
from lightning_rebasin.symmetry.continuous.operations import Limit, Step
from lightning_rebasin.symmetry.continuous.roles import (
    Roles,
    pairs,
    roles_of_weight,
)
from lightning_rebasin.symmetry.continuous.systems import Key, Parities
from lightning_rebasin.symmetry.spec.values import AxisMap, Group
from lightning_rebasin.symmetry.trace.tape import Tape, references


@final
@dataclass(frozen=True)
class Vector:
    """What is known of one value that carries the group.

    Args:
        roles: Which copies of the units stand where.
        weight: The tensor of the state that it is, perhaps turned or viewed.
        gain: The gain that multiplies its coordinates.
        shift: What was added behind the gain.
        square: Whether it holds the squares of the coordinates.
        offset: The number that was added to the tensor of the state that it is.
        writers: The layer whose result it is: its weight and its bias, if they are tensors of the state.
        path: The values from that layer's result to this one.
    """

    roles: Roles
    weight: str = ""
    gain: str = ""
    shift: str = ""
    square: bool = False
    offset: float = 0.0
    writers: tuple[str, ...] = ()
    path: tuple[int, ...] = ()


@final
class Vectors:
    """The vectors of one group, and what the operations that they met allow.

    Args:
        group: The group.
        maps: Where units stand in the tensors of the state.
    """

    def __init__(self, group: Group, maps: Mapping[str, AxisMap]) -> None:
        self.group = group
        self._maps = maps
        self._known: dict[Key, Vector] = {}
        self._numbers: dict[Key, int] = {}
        self._parities = Parities()
        #: For each tensor of the state the roles of its copies, and the dimensions along which they stand.
        self._copies: dict[str, dict[int, int]] = {}
        self._dims: dict[str, frozenset[int]] = {}
        self.gains = Gains()
        #: Why only rotations are allowed, and why the mean must stay; empty if that is not so.
        self.rotates = ""
        self.keeps_mean = ""
        #: Tensors with a number added, why the mean must stay if they are no gains, and how often they are met so.
        self._offsets: dict[Key, str] = {}
        self._met: Counter[Key] = Counter()
        #: How often each value of a tape is read, by the number of the example.
        self._readers: dict[int, Counter[int]] = {}
        #: Whether something reads the vector itself, not behind a norm that takes its mean away.
        self.read_plainly = False

    def of(self, step: Step, value: int) -> Vector:
        """What is known of a value that carries the group."""
        tensor = step.value(value)
        of_state = tensor.origin == "state"
        key: Key = tensor.name if of_state else (step.number, value)
        if key in self._known:
            self._met[key] += 1
            return self._known[key]
        if of_state:
            vector = self._of_weight(step, value, tensor.name)
        else:
            vector = Vector(self._number(key))
        self._known[key] = vector
        return vector

    def give_offset(self, step: Step, vector: Vector, number: float) -> None:
        """All results are a tensor of the state with a number added, which only a gain may be."""
        self.give(
            step,
            replace(vector, offset=vector.offset + number),
            weight=vector.weight,
        )
        for value in step.results:
            why = f"{step.name} adds a number to all its units"
            self._offsets[step.number, value] = why

    def excuse(self, step: Step, value: int) -> None:
        """A tensor with a number added was met as a gain, or was only copied."""
        self._met[step.number, value] -= 1

    def settle_offsets(self) -> None:
        """Whatever is not excused has a number added to all units: the mean must stay."""
        for key, why in self._offsets.items():
            if self._met[key]:
                self.keeps_mean = self.keeps_mean or why

    def is_written_for(self, step: Step, vector: Vector) -> bool:
        """Whether a layer writes a vector for this operation only: nothing else reads it on its way."""
        if not vector.writers:
            return False
        if step.number not in self._readers:
            self._readers[step.number] = _count_readers(step.tape)
        readers = self._readers[step.number]
        return all(readers[value] == 1 for value in vector.path)

    def _of_weight(self, step: Step, value: int, name: str) -> Vector:
        seat = step.seat(value)
        assert seat is not None
        self._dims[name] = seat.dims
        copies = self._copies.setdefault(name, {})

        def number(copy: int) -> int:
            copies[copy] = self._number((name, copy))
            return copies[copy]

        axis_map = self._maps.get(name)
        if axis_map is None:
            return Vector(number(0), name)
        # In a stack of matrices the label may name the stack's dimension as well, though all of them are alike.
        self._dims[name] = frozenset(axis_map.dims_of(self.group.id))
        return Vector(roles_of_weight(axis_map, self.group.id, number), name)

    def _number(self, key: Key) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def give(
        self,
        step: Step,
        vector: Vector,
        roles: Mapping[int, Roles] | None = None,
        *,
        weight: str = "",
    ) -> None:
        """All results that carry the group are this vector.

        Args:
            step: The operation.
            vector: The vector.
            roles: Roles of each result, if they are not those of the vector.
            weight: The tensor of the state that the results still are.
        """
        if len(step.results) > 1:
            # Of several results one might be multiplied by a gain, and the others not.
            vector = replace(vector, writers=())
        for value in step.results:
            own = vector.roles if roles is None else roles[value]
            path = (*vector.path, value) if vector.writers else ()
            known = replace(vector, roles=own, weight=weight, path=path)
            self._known[(step.number, value)] = known

    def tie(self, step: Step, first: Roles, second: Roles, sign: int) -> None:
        """Say that two vectors change alike (+1) or oppositely (−1), wherever units of both stand.

        Raises:
            Limit: They do not stand in places that fit.
        """
        try:
            met = list(pairs(first, second))
        except (RuntimeError, ValueError) as error:
            raise Limit(
                f"its copies cannot be told apart at {step.name}"
            ) from error
        for a, b in met:
            # What must be its own contragredient is a rotation.
            if not self._parities.tie(a, b, sign):
                self.rotates = (
                    self.rotates or f"{step.name} multiplies it with itself"
                )

    def dim_of(self, weight: str) -> int:
        """The dimension of a tensor of the state along which the group stands.

        Raises:
            Limit: There are several.
        """
        dims = self._dims[weight]
        if len(dims) != 1:
            raise Limit(f"it stands along several dimensions of {weight!r}")
        return next(iter(dims))

    def powers(self) -> dict[str, tuple[int, ...]]:
        """+1 or −1 for every copy in every tensor; the first one that is met of each connected set writes."""
        first: dict[Key, int] = {}
        found = {}
        for name, copies in self._copies.items():
            signs = []
            for number in copies.values():
                root, sign = self._parities.root(number)
                reference = first.setdefault(root, sign)
                signs.append(sign * reference)
            found[name] = tuple(signs)
        return found


def _count_readers(tape: Tape) -> Counter[int]:
    """How many operations read each value, and whether it is a result."""
    found = Counter(tape.results)
    for node in tape.nodes:
        found.update(ref.value for ref in references(node.arguments))
    return found


def unfolded(step: Step, vector: Vector) -> Limit:
    """The limit where a gain goes on into something that is no weight."""
    return Limit(
        f"the gain {vector.gain!r} cannot be folded: what it multiplies goes on into {step.name}"
    )
