"""Operations that are linear in a vector and treat all coordinates alike: copies, sums, products, contractions.

They commute with every invertible matrix if writers get A and readers A⁻ᵀ.  What is more (a gain, a number that is
added to all coordinates) is written down, and what is too much raises :class:`~.operations.Limit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.operations import Limit, Step
from lightning_rebasin.symmetry.continuous.roles import (
    NOTHING,
    Roles,
    beside,
    followed,
)
from lightning_rebasin.symmetry.continuous.vectors import (
    Vector,
    Vectors,
    unfolded,
)
from lightning_rebasin.symmetry.spec.folds import Reader
from lightning_rebasin.symmetry.trace.tape import references

_ADDITIONS = frozenset(("aten.add", "aten.sub", "aten.rsub"))
_JOINED = frozenset(("aten.cat", "aten.stack"))


def copied(vectors: Vectors, step: Step) -> None:
    """Numbers change their places."""
    if not step.carriers:
        raise Limit(f"its units are taken apart at {step.name}")
    value = step.carriers[-1]
    vector = vectors.of(step, value)
    weight = vector.weight
    if len(step.operands) < _count_tensors(step):
        # A table: the rows that come out are data.
        vectors.gains.use(vector.weight, step.name)
        weight = ""
    roles = followed(step, value, vector.roles)
    if vector.offset and weight:
        vectors.excuse(step, value)
        vectors.give_offset(step, vector, 0.0)
        return
    vectors.give(step, vector, roles, weight=weight)


def index_added(vectors: Vectors, step: Step) -> None:
    """Vectors are added to some of those that are there: what experts give, at the tokens that they were asked for."""
    carried = _carried(vectors, step, ("self", "source"))
    # The first experts are added to zeros, which are no vector yet.
    complete = len(carried) == 2 or _are_zeros(step, step.ref("self"))
    if not (carried and complete and step.results):
        raise Limit(f"its units stand beside others at {step.name}")
    (result,) = step.results
    seat = step.seat(result)
    assert seat is not None
    if (
        int(step.node.arguments["dim"]) % len(step.value(result).shape)
        in seat.dims
    ):
        raise Limit(f"its units are taken apart at {step.name}")
    first = carried[0][1]
    for _, vector in carried:
        if vector.gain:
            raise unfolded(step, vector)
        if vector.square:
            raise Limit(f"{step.name} adds squares of its units")
        vectors.gains.use(vector.weight, step.name)
        vectors.tie(step, vector.roles, first.roles, 1)
    vectors.give(step, replace(first, writers=()))


def _are_zeros(step: Step, value: int | None) -> bool:
    """Whether a value was made as zeros."""
    for node in step.tape.nodes:
        if value in node.outputs:
            return node.op in ops.ZEROS
    return False


def zeroed(vectors: Vectors, step: Step) -> None:
    """Zeros in the shape of a vector: a new vector, of which nothing is known yet."""
    del vectors, step


def _count_tensors(step: Step) -> int:
    """Tensor arguments, indices included."""
    return len(list(references(step.node.arguments)))


def added(vectors: Vectors, step: Step) -> None:
    """Operands are added, or put beside each other."""
    if _is_offset(vectors, step):
        return
    along = _joined_dim(step)
    if along is None and (step.others or step.has_added_number()):
        _same_for_all(vectors, step)
    gained: list[Vector] = []
    plain: list[Vector] = []
    for value in step.carriers:
        vector = vectors.of(step, value)
        if vector.square:
            raise Limit(
                f"something is added to squares of its units at {step.name}"
            )
        kind = gained if vector.gain else plain
        kind.append(vector)
    if gained:
        _shifted(vectors, step, gained, plain)
        return
    for vector in plain:
        vectors.gains.use(vector.weight, step.name)
    if along is not None:
        roles = _beside(vectors, step, along)
        vectors.give(step, Vector(roles))
        return
    first = plain[0]
    for vector in plain:
        vectors.tie(step, vector.roles, first.roles, 1)
    vectors.give(step, replace(first, writers=()))


def _is_offset(vectors: Vectors, step: Step) -> bool:
    """Whether a number is added to a tensor of the state and nothing else: perhaps it will be a gain."""
    number = step.node.arguments.get("other")
    plain = step.number_argument("alpha", 1) == 1 and not step.others
    if step.op != "aten.add" or len(step.carriers) != 1 or not plain:
        return False
    vector = vectors.of(step, step.carriers[0])
    if not vector.weight or not isinstance(number, int | float):
        return False
    vectors.excuse(step, step.carriers[0])
    vectors.give_offset(step, vector, float(number))
    return True


def _joined_dim(step: Step) -> int | None:
    """The dimension along which pieces are joined, if the group stands along it."""
    if step.op not in _JOINED or not step.results:
        return None
    (result,) = step.results
    seat = step.seat(result)
    assert seat is not None
    dim = int(step.number_argument("dim", 0))
    dim %= len(step.value(result).shape)
    return dim if dim in seat.dims else None


def _beside(vectors: Vectors, step: Step, dim: int) -> Roles:
    """The roles of a concatenation along the units: other pieces may stand beside them."""
    stacked = step.op == "aten.stack"
    parts: list[tuple[Roles, Sequence[int]]] = []
    for value in step.operands:
        carried = step.seat(value) is not None
        roles: Roles = vectors.of(step, value).roles if carried else NOTHING
        shape = list(step.value(value).shape)
        if stacked:
            shape.insert(dim, 1)
            roles = (
                roles.unsqueeze(dim) if isinstance(roles, Tensor) else roles
            )
        parts.append((roles, shape))
    return beside(parts, dim)


def _same_for_all(vectors: Vectors, step: Step) -> None:
    """What does not carry the units is added to all of them alike."""
    if step.op not in _ADDITIONS:
        raise Limit(f"its units stand beside others at {step.name}")
    vectors.keeps_mean = (
        vectors.keeps_mean or f"{step.name} adds a number to all its units"
    )


def _shifted(
    vectors: Vectors, step: Step, gained: list[Vector], plain: list[Vector]
) -> None:
    """A shift behind a gain: the only thing that may be added there."""
    one = gained[0]
    alone = len(gained) == 1 and len(plain) == 1
    if not alone or one.shift or not plain[0].weight:
        raise unfolded(step, one)
    shift = plain[0]
    vectors.gains.shift(one.gain, shift.weight, step.name)
    vectors.tie(step, shift.roles, one.roles, 1)
    vectors.give(step, replace(one, shift=shift.weight))


def multiplied(vectors: Vectors, step: Step) -> None:
    """A product with numbers that do not look at the coordinates, or of two vectors coordinate by coordinate."""
    if step.op == "aten.div" and step.carried("other") is not None:
        raise Limit(f"{step.name} divides by its units")
    found = [vectors.of(step, value) for value in step.carriers]
    first = found[0]
    if len(found) == 1:
        vectors.gains.use(first.weight, step.name)
        vectors.give(step, first)
        return
    second = found[1]
    plain = not first.gain and not first.square
    if step.carriers[0] == step.carriers[1] and plain:
        vectors.give(step, replace(first, square=True))
    elif second.weight and not first.weight:
        vectors.excuse(step, step.carriers[1])
        _gained(vectors, step, first, second)
    elif first.weight and not second.weight:
        vectors.excuse(step, step.carriers[0])
        _gained(vectors, step, second, first)
    else:
        raise Limit(f"{step.name} multiplies its units one by one")


def _gained(
    vectors: Vectors, step: Step, vector: Vector, gain: Vector
) -> None:
    """A tensor of the state multiplies the coordinates one by one."""
    if vector.gain or vector.square:
        raise unfolded(step, vector)
    vectors.gains.begin(gain.weight, gain.offset)
    if not vectors.is_written_for(step, vector):
        vectors.give(step, replace(vector, gain=gain.weight, writers=()))
        return
    # At the end of a branch: what is written there is scaled before.
    writers = [Reader(name, vectors.dim_of(name)) for name in vector.writers]
    vectors.gains.written(gain.weight, writers)
    vectors.give(step, replace(vector, writers=()))


def contracted(vectors: Vectors, step: Step) -> None:
    """A product that sums over the units, or over another dimension."""
    left, right, added_to = ops.CONTRACTED[step.op]
    pair = _carried(vectors, step, (left, right))
    for _, vector in pair:
        if vector.square:
            raise Limit(f"{step.name} contracts squares of its units")
    if step.results:
        if len(pair) != 1:
            raise Limit(f"{step.name} multiplies its units one by one")
        _passed(vectors, step, *pair[0])
        return
    if len(pair) != 2:
        raise Limit(f"{step.name} sums its units with weights of its own")
    (_, first), (_, second) = pair
    turned = replace(second, roles=_facing(step, second.roles))
    _joined(vectors, step, (first, turned), step.ref(added_to))


def _carried(
    vectors: Vectors, step: Step, arguments: Iterable[str]
) -> list[tuple[str, Vector]]:
    """The arguments among these that carry the group."""
    found = []
    for name in arguments:
        value = step.carried(name)
        if value is not None:
            found.append((name, vectors.of(step, value)))
    return found


def _passed(
    vectors: Vectors, step: Step, argument: str, vector: Vector
) -> None:
    """Another dimension is contracted: the result is the same vector, with a bias perhaps."""
    vectors.gains.use(vector.weight, step.name)
    roles = _passing(step, argument, vector.roles)
    writers = (vector.weight,) if vector.weight else vector.writers
    addend = step.carried(ops.CONTRACTED[step.op][2])
    if addend is not None:
        bias = vectors.of(step, addend)
        if vector.gain or bias.gain:
            raise unfolded(step, vector)
        vectors.gains.use(bias.weight, step.name)
        beside_bias = roles
        if step.op == "aten.convolution" and isinstance(roles, Tensor):
            # (1, channels, 1, 1) beside (channels,)
            beside_bias = roles.reshape(-1)
        vectors.tie(step, bias.roles, beside_bias, 1)
        # A sum with what is no bias of the state has more writers than these.
        writers = (*writers, bias.weight) if bias.weight else ()
    written = replace(vector, roles=roles, writers=writers, path=())
    vectors.give(step, written)


def _passing(step: Step, argument: str, roles: Roles) -> Roles:
    """Roles of an operand as they stand in the result."""
    if isinstance(roles, int):
        return roles
    if step.op == "aten.convolution":
        transposed = step.number_argument("transposed", default=False)
        turns = argument == "weight" and not transposed
        return roles.transpose(0, 1) if turns else roles
    left, _, _ = ops.CONTRACTED[step.op]
    if roles.ndim == 1 or step.op in ("aten.mv", "aten.addmv"):
        return roles.reshape(-1)
    # Rows of the left operand, or columns of the right one; along the other dimension nothing may change.
    other = -1 if argument == left else -2
    if roles.shape[other] != 1:
        raise Limit(f"its copies cannot be told apart at {step.name}")
    return roles


def _facing(step: Step, roles: Roles) -> Roles:
    """Roles of a right operand as they meet those of the left one: columns of the left meet rows of the right."""
    if isinstance(roles, int) or roles.ndim < 2:
        return roles
    if step.op == "aten.convolution":
        transposed = step.number_argument("transposed", default=False)
        return roles.transpose(0, 1) if transposed else roles
    return roles.transpose(-1, -2)


def _joined(
    vectors: Vectors,
    step: Step,
    pair: tuple[Vector, Vector],
    addend: int | None,
) -> None:
    """A writer and a reader meet."""
    first, second = pair
    vectors.tie(step, first.roles, second.roles, -1)
    if not first.gain and not second.gain:
        vectors.read_plainly = True
        vectors.gains.use(first.weight, step.name)
        vectors.gains.use(second.weight, step.name)
        return
    vector, weight = (first, second) if first.gain else (second, first)
    if weight.gain or not weight.weight:
        raise unfolded(step, vector)
    bias = None
    # A convolution reads zeros beside the image, where there is no shift: it cannot go into the bias.
    if addend is not None and step.op != "aten.convolution":
        given = step.value(addend)
        if given.origin == "state":
            bias = given.name
    name = weight.weight
    reader = Reader(name, vectors.dim_of(name), bias)
    vectors.gains.read(vector.gain, reader, step.name)


def attended(vectors: Vectors, step: Step) -> None:
    """Queries and keys meet; values pass through."""
    for mask in ("attn_mask", "attn_bias"):
        if step.carried(mask) is not None:
            raise Limit(f"{step.name} masks its units")
    meeting = _carried(vectors, step, ("query", "key"))
    for _, vector in meeting:
        if vector.gain or vector.square:
            raise unfolded(step, vector)
    if len(meeting) == 1:
        raise Limit(f"{step.name} sums its units with others")
    if meeting:
        (_, query), (_, key) = meeting
        vectors.tie(step, query.roles, key.roles, -1)
        vectors.read_plainly = True
    for _, vector in _carried(vectors, step, ("value",)):
        if not step.results:
            raise Limit(f"{step.name} takes its units apart")
        vectors.give(step, vector)
