"""Which groups may be mixed by matrices.

A group walks through the tape as a *vector*: its units are the coordinates.  Operations that are linear in the vector
and treat all coordinates alike (copies, sums, products with matrices that do not look at them, contractions with
another vector) commute with every invertible matrix A if writers get A and readers A⁻ᵀ; :class:`Parities` keep the two
apart.  Other operations allow less:

- the square norm of the vector (RMSNorm): rotations;
- its mean, or a number that is added to all coordinates (LayerNorm): maps that keep (1, …, 1);
- a gain γ that multiplies the coordinates one by one: nothing, unless all that reads it is linear, for then it is
  *folded* into the readers and is 1.

Everything else (a pointwise function, a softmax, a slice) ends the walk, and its name is the reason that the user is
told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.carrying import Carrying
from lightning_rebasin.symmetry.continuous.operations import (
    Limit,
    Step,
    steps_of,
)
from lightning_rebasin.symmetry.continuous.systems import Key, Parities
from lightning_rebasin.symmetry.spec.folds import Fold, Reader
from lightning_rebasin.symmetry.spec.values import Group
from lightning_rebasin.symmetry.trace.tape import Tape, references


@final
@dataclass(frozen=True)
class Vector:
    """What is known of one value that carries the group.

    Args:
        key: Its node among the parities.
        weight: The tensor of the state that it is, perhaps turned or viewed.
        gain: The gain that multiplies its coordinates.
        shift: What was added behind the gain.
        square: Whether it holds the squares of the coordinates.
    """

    key: Key
    weight: str = ""
    gain: str = ""
    shift: str = ""
    square: bool = False


@final
@dataclass
class _Gain:
    """One gain, what is added behind it, and what reads it."""

    shift: str = ""
    readers: dict[str, Reader] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Mixing:
    """A group whose units may be mixed.

    Args:
        kind: The largest kind that all operations allow.
        powers: For each tensor +1 if it writes, −1 if it reads.
        folds: Gains that have to be folded before.
        centred: Whether nothing sees the mean of what the tensors hold along the units.
    """

    kind: str
    powers: dict[str, int]
    folds: tuple[Fold, ...] = ()
    centred: bool = False


@final
class VectorWalk:
    """One group on its way through all tapes.

    Args:
        group: The group.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._known: dict[Key, Vector] = {}
        self._parities = Parities()
        self._gains: dict[str, _Gain] = {}
        #: How each tensor is used: plainly (""), or as a reader of a gain.
        self._uses: dict[str, dict[str, str]] = {}
        self._rotates = False
        self._keeps_mean = False
        #: Whether something reads the vector itself, not behind a norm that takes its mean away.
        self._read_plainly = False

    def walk(self, tapes: Sequence[tuple[Tape, Carrying]]) -> Mixing:
        """Go through all tapes.

        Raises:
            Limit: An operation allows no mixing.
        """
        group = self._group
        for step in steps_of(tapes, group.id, group.size):
            self._check_seats(step)
            handler = _HANDLERS.get(step.op, VectorWalk._other)
            handler(self, step)
        self._check_uses()
        folds = []
        for name, gain in self._gains.items():
            readers = tuple(gain.readers.values())
            shift = gain.shift or None
            fold = Fold(name, shift, readers)
            folds.append(fold)
        return Mixing(
            kind=self._kind(),
            powers=self._powers(),
            folds=tuple(folds),
            centred=self._centred(folds),
        )

    def _kind(self) -> str:
        if self._keeps_mean:
            return "orthogonal_mean"
        return "orthogonal" if self._rotates else "linear"

    def _powers(self) -> dict[str, int]:
        """Signs of all tensors; the first one that is met of each connected set writes."""
        first: dict[Key, int] = {}
        found = {}
        for key, vector in self._known.items():
            of_state = isinstance(key, str) and vector.weight
            if not of_state:
                continue
            root, sign = self._parities.root(key)
            reference = first.setdefault(root, sign)
            found[vector.weight] = sign * reference
        return found

    def _centred(self, folds: Iterable[Fold]) -> bool:
        if not self._keeps_mean or self._read_plainly:
            return False
        for fold in folds:
            stays = fold.shift and not fold.absorbs_shift
            if stays:
                return False
        return True

    # ---- states

    def _vector(self, step: Step, value: int) -> Vector:
        """What is known of a value that carries the group."""
        tensor = step.value(value)
        key: Key = (step.number, value)
        weight = ""
        if tensor.origin == "state":
            key = weight = tensor.name
        if key not in self._known:
            self._known[key] = Vector(key, weight)
        return self._known[key]

    def _give(self, step: Step, vector: Vector, *, weight: str = "") -> None:
        """All results are this vector."""
        for value in step.results:
            key = (step.number, value)
            self._tie(key, vector.key, 1)
            self._known[key] = replace(vector, key=key, weight=weight)

    def _tie(self, first: Key, second: Key, sign: int) -> None:
        # What must be its own contragredient is a rotation.
        if not self._parities.tie(first, second, sign):
            self._rotates = True

    def _use(self, vector: Vector, where: str, gain: str = "") -> None:
        """A tensor of the state is used, plainly or as a reader of a gain."""
        if not vector.weight:
            return
        uses = self._uses.setdefault(vector.weight, {})
        uses.setdefault(gain, where)

    def _check_seats(self, step: Step) -> None:
        for value in (*step.carriers, *step.results):
            seat = step.seat(value)
            assert seat is not None
            if seat.axes > 1:
                raise Limit(
                    f"it stands on two axes of one tensor at {step.name}"
                )
            if not seat.whole:
                raise Limit(f"its units are taken apart at {step.name}")

    def _check_uses(self) -> None:
        """A weight into which a gain is folded must not be used in any other way."""
        for name, uses in self._uses.items():
            gains = [gain for gain in uses if gain]
            if gains and len(uses) > 1:
                other = next(uses[use] for use in uses if use != gains[0])
                raise Limit(
                    f"the gain {gains[0]!r} cannot be folded into {name!r}, which is also used at {other}",
                    weight=name,
                )
        for gain in self._gains:
            if gain in self._uses:
                raise Limit(f"the gain {gain!r} is also used in another way")

    # ---- operations

    def _other(self, step: Step) -> None:
        raise Limit(f"{step.name} treats its units one by one or in an order")

    def _copied(self, step: Step) -> None:
        if not step.carriers or not step.results:
            raise Limit(f"its units are taken apart at {step.name}")
        last = step.carriers[-1]
        vector = self._vector(step, last)
        looked_up = len(step.operands) < _count_tensors(step)
        weight = vector.weight
        if looked_up:
            # A table: the rows that come out are data.
            self._use(vector, step.name)
            weight = ""
        self._give(step, vector, weight=weight)

    def _added(self, step: Step) -> None:
        if step.others or step.has_added_number():
            self._same_for_all(step)
        gained: list[Vector] = []
        plain: list[Vector] = []
        for value in step.carriers:
            vector = self._vector(step, value)
            if vector.square:
                raise Limit(
                    f"something is added to squares of its units at {step.name}"
                )
            kind = gained if vector.gain else plain
            kind.append(vector)
        if gained:
            self._shifted(step, gained, plain)
            return
        first = plain[0]
        for vector in plain:
            self._use(vector, step.name)
            self._tie(vector.key, first.key, 1)
        self._give(step, first)

    def _same_for_all(self, step: Step) -> None:
        """What does not carry the units is added to all of them alike."""
        if step.op not in _ADDITIONS:
            raise Limit(f"its units stand beside others at {step.name}")
        self._keeps_mean = True

    def _shifted(
        self, step: Step, gained: list[Vector], plain: list[Vector]
    ) -> None:
        """A shift behind a gain: the only thing that may be added there."""
        one = gained[0]
        alone = len(gained) == 1 and len(plain) == 1
        if not alone or one.shift:
            raise self._unfolded(step, one)
        shift = plain[0]
        if not shift.weight:
            raise self._unfolded(step, one)
        self._gains[one.gain].shift = shift.weight
        self._use(shift, step.name, one.gain)
        self._tie(shift.key, one.key, 1)
        self._give(step, replace(one, shift=shift.weight))

    def _unfolded(self, step: Step, vector: Vector) -> Limit:
        return Limit(
            f"the gain {vector.gain!r} cannot be folded: what it multiplies goes on into {step.name}"
        )

    def _multiplied(self, step: Step) -> None:
        divides = step.op == "aten.div"
        if divides and step.carried("other") is not None:
            raise Limit(f"{step.name} divides by its units")
        vectors = [self._vector(step, value) for value in step.carriers]
        first = vectors[0]
        if len(vectors) == 1:
            self._use(first, step.name)
            self._give(step, first)
            return
        self._multiplied_together(step, first, vectors[1])

    def _multiplied_together(
        self, step: Step, first: Vector, second: Vector
    ) -> None:
        """Two vectors, coordinate by coordinate: a square, or a gain."""
        plain = not first.gain and not first.square
        if first.key == second.key and plain:
            squares = replace(first, square=True)
            self._give(step, squares)
        elif second.weight and not first.weight:
            self._gained(step, first, second)
        elif first.weight and not second.weight:
            self._gained(step, second, first)
        else:
            raise Limit(f"{step.name} multiplies its units one by one")

    def _gained(self, step: Step, vector: Vector, gain: Vector) -> None:
        """A tensor of the state multiplies the coordinates one by one."""
        if vector.gain or vector.square:
            raise self._unfolded(step, vector)
        if gain.weight in self._gains:
            raise Limit(f"the gain {gain.weight!r} is used twice")
        self._gains[gain.weight] = _Gain()
        self._give(step, replace(vector, gain=gain.weight))

    def _raised(self, step: Step) -> None:
        exponent = step.number_argument("exponent", 2)
        vector = self._vector(step, step.carriers[0])
        if exponent != 2 or vector.gain or vector.square:
            raise Limit(f"{step.name} treats its units one by one")
        self._use(vector, step.name)
        self._give(step, replace(vector, square=True))

    def _reduced(self, step: Step) -> None:
        vector = self._vector(step, step.carriers[0])
        if step.results:
            self._give(step, vector)
            return
        self._require_whole(step, vector)
        if vector.square:
            self._rotates = True
        else:
            self._keeps_mean = True
            self._use(vector, step.name)

    def _spread(self, step: Step) -> None:
        vector = self._vector(step, step.carriers[0])
        self._require_whole(step, vector)
        if vector.square:
            raise Limit(f"{step.name} treats squares of its units one by one")
        self._rotates = self._keeps_mean = True

    def _length(self, step: Step) -> None:
        vector = self._vector(step, step.carriers[0])
        self._require_whole(step, vector)
        order = step.number_argument("ord", step.number_argument("p", 2))
        if order != 2 or vector.square:
            raise Limit(f"{step.name} treats its units one by one")
        self._rotates = True

    def _require_whole(self, step: Step, vector: Vector) -> None:
        if vector.gain:
            raise self._unfolded(step, vector)
        if step.results or not step.reduces_whole_instances(step.carriers[0]):
            raise Limit(f"{step.name} looks at a part of its units")

    def _layer_normed(self, step: Step) -> None:
        self._keeps_mean = True
        self._rms_normed(step)

    def _rms_normed(self, step: Step) -> None:
        self._rotates = True
        value = step.carried("input")
        if value is None or not step.normalises_whole_instances(value):
            raise Limit(f"{step.name} normalises a part of its units")
        vector = self._vector(step, value)
        if vector.gain or vector.square:
            raise self._unfolded(step, vector)
        found = replace(vector, weight="")
        gain = step.carried("weight")
        if gain is not None:
            name = step.value(gain).name
            if not name or name in self._gains:
                raise Limit(f"the gain of {step.name} is used twice")
            self._gains[name] = _Gain()
            found = replace(found, gain=name)
        shift = step.carried("bias")
        if shift is not None:
            found = self._normed_shift(step, found, vector, shift)
        self._give(step, found)

    def _normed_shift(
        self, step: Step, found: Vector, vector: Vector, value: int
    ) -> Vector:
        """What a norm adds behind its gain."""
        shift = self._vector(step, value)
        name = shift.weight
        if not name or not found.gain:
            raise Limit(f"the shift of {step.name} is not a weight")
        gain = self._gains[found.gain]
        gain.shift = name
        self._use(shift, step.name, found.gain)
        self._tie(shift.key, vector.key, 1)
        return replace(found, shift=name)

    def _contracted(self, step: Step) -> None:
        left, right, added = ops.CONTRACTED[step.op]
        pair = self._carried(step, (left, right))
        for vector in pair:
            if vector.square:
                raise Limit(f"{step.name} contracts squares of its units")
        addend = step.carried(added)
        if step.results:
            if len(pair) != 1:
                raise Limit(f"{step.name} multiplies its units one by one")
            self._passed(step, pair[0], addend)
            return
        if len(pair) != 2:
            raise Limit(f"{step.name} sums its units with weights of its own")
        self._joined(step, pair[0], pair[1], step.ref(added))

    def _carried(self, step: Step, arguments: Iterable[str]) -> list[Vector]:
        """The arguments among these that carry the group."""
        found = []
        for name in arguments:
            value = step.carried(name)
            if value is not None:
                vector = self._vector(step, value)
                found.append(vector)
        return found

    def _passed(self, step: Step, vector: Vector, addend: int | None) -> None:
        """Another dimension is contracted: the result is the same vector, with a bias perhaps."""
        self._use(vector, step.name)
        if addend is not None:
            bias = self._vector(step, addend)
            if vector.gain or bias.gain:
                raise self._unfolded(step, vector)
            self._use(bias, step.name)
            self._tie(bias.key, vector.key, 1)
        self._give(step, vector)

    def _joined(
        self, step: Step, first: Vector, second: Vector, addend: int | None
    ) -> None:
        """A writer and a reader meet."""
        self._tie(first.key, second.key, -1)
        if not first.gain and not second.gain:
            self._read_plainly = True
            self._use(first, step.name)
            self._use(second, step.name)
            return
        vector, weight = (first, second) if first.gain else (second, first)
        if weight.gain or not weight.weight:
            raise self._unfolded(step, vector)
        self._use(weight, step.name, vector.gain)
        bias = None
        if addend is not None:
            added = step.value(addend)
            if added.origin == "state":
                bias = added.name
        name = weight.weight
        dim = self._dim_of(step, name)
        readers = self._gains[vector.gain].readers
        readers[name] = Reader(name, dim, bias)

    def _dim_of(self, step: Step, weight: str) -> int:
        """The dimension of a tensor of the state along which the group stands."""
        for value, tensor in enumerate(step.tape.values):
            if tensor.origin == "state" and tensor.name == weight:
                seat = step.seat(value)
                assert seat is not None
                if len(seat.dims) == 1:
                    return next(iter(seat.dims))
        raise Limit(f"it stands along several dimensions of {weight!r}")

    def _attended(self, step: Step) -> None:
        for mask in ("attn_mask", "attn_bias"):
            if step.carried(mask) is not None:
                raise Limit(f"{step.name} masks its units")
        self._met(step, self._carried(step, ("query", "key")))
        for vector in self._carried(step, ("value",)):
            if not step.results:
                raise Limit(f"{step.name} takes its units apart")
            mean = replace(vector, weight="")
            self._give(step, mean)

    def _met(self, step: Step, meeting: Sequence[Vector]) -> None:
        """Queries and keys: a writer and a reader, or neither."""
        if not meeting:
            return
        for vector in meeting:
            if vector.gain or vector.square:
                raise self._unfolded(step, vector)
        if len(meeting) == 1:
            raise Limit(f"{step.name} sums its units with others")
        query, key = meeting
        self._tie(query.key, key.key, -1)
        self._read_plainly = True


def _count_tensors(step: Step) -> int:
    """Tensor arguments, indices included."""
    return len(list(references(step.node.arguments)))


_ADDITIONS = frozenset(("aten.add", "aten.sub", "aten.rsub"))
Handler = Callable[[VectorWalk, Step], None]


def _handlers() -> dict[str, Handler]:
    families: list[tuple[Iterable[str], Handler]] = [
        (ops.COPIES, VectorWalk._copied),
        (ops.SUMS, VectorWalk._added),
        (ops.PRODUCTS, VectorWalk._multiplied),
        (("aten.pow", "aten.square"), VectorWalk._raised),
        (ops.REDUCTIONS, VectorWalk._reduced),
        (ops.SPREADS, VectorWalk._spread),
        (ops.LENGTHS, VectorWalk._length),
        (ops.LAYER_NORMS, VectorWalk._layer_normed),
        (ops.RMS_NORMS, VectorWalk._rms_normed),
        (ops.CONTRACTED, VectorWalk._contracted),
        (ops.ATTENTION, VectorWalk._attended),
    ]
    found: dict[str, Handler] = {}
    for names, handler in families:
        found.update(dict.fromkeys(names, handler))
    return found


_HANDLERS = _handlers()
