"""Operations that look at a vector as a whole: its length, its mean, norms, and what only prepares them.

The square norm allows rotations (RMSNorm), the mean allows maps that keep (1, …, 1), and LayerNorm looks at both.
"""

from __future__ import annotations

from dataclasses import replace

from lightning_rebasin.symmetry.continuous.operations import Limit, Step
from lightning_rebasin.symmetry.continuous.vectors import (
    Vector,
    Vectors,
    unfolded,
)


def raised(vectors: Vectors, step: Step) -> None:
    """Squares of the coordinates, as the beginning of a norm."""
    exponent = step.number_argument("exponent", 2)
    vector = vectors.of(step, step.carriers[0])
    if exponent != 2 or vector.gain or vector.square:
        raise Limit(f"{step.name} treats its units one by one")
    vectors.gains.use(vector.weight, step.name)
    vectors.give(step, replace(vector, square=True))


def reduced(vectors: Vectors, step: Step) -> None:
    """A sum or a mean: over the coordinates, of the coordinates or of their squares, or over something else."""
    vector = vectors.of(step, step.carriers[0])
    if step.results:
        if not isinstance(vector.roles, int):
            raise Limit(f"its copies cannot be told apart at {step.name}")
        vectors.give(step, vector)
        return
    _require_whole(step, vector)
    if vector.square:
        _needs_length(vectors, step)
    else:
        _needs_mean(vectors, step)
        vectors.gains.use(vector.weight, step.name)


def spread(vectors: Vectors, step: Step) -> None:
    """A variance."""
    vector = vectors.of(step, step.carriers[0])
    _require_whole(step, vector)
    if vector.square:
        raise Limit(f"{step.name} treats squares of its units one by one")
    _needs_length(vectors, step)
    _needs_mean(vectors, step)


def length(vectors: Vectors, step: Step) -> None:
    """A norm in the sense of mathematics."""
    vector = vectors.of(step, step.carriers[0])
    _require_whole(step, vector)
    order = step.number_argument("ord", step.number_argument("p", 2))
    if order != 2 or vector.square:
        raise Limit(f"{step.name} treats its units one by one")
    _needs_length(vectors, step)


def layer_normed(vectors: Vectors, step: Step) -> None:
    """LayerNorm."""
    _needs_mean(vectors, step)
    rms_normed(vectors, step)


def rms_normed(vectors: Vectors, step: Step) -> None:
    """RMSNorm, with its gain and its shift."""
    _needs_length(vectors, step)
    value = step.carried("input")
    if value is None or not step.normalises_whole_instances(value):
        raise Limit(f"{step.name} normalises a part of its units")
    vector = vectors.of(step, value)
    if vector.gain or vector.square:
        raise unfolded(step, vector)
    found = replace(vector, weight="", writers=())
    gain = step.carried("weight")
    if gain is not None:
        name = step.value(gain).name
        if not name:
            raise Limit(f"the gain of {step.name} is not a weight")
        vectors.gains.begin(name)
        found = replace(found, gain=name)
    shift = step.carried("bias")
    if shift is not None:
        found = _normed_shift(vectors, step, found, shift)
    vectors.give(step, found)


def _normed_shift(
    vectors: Vectors, step: Step, found: Vector, value: int
) -> Vector:
    """What a norm adds behind its gain."""
    shift = vectors.of(step, value)
    name = shift.weight
    if not name or not found.gain:
        raise Limit(f"the shift of {step.name} is not a weight")
    vectors.gains.shift(found.gain, name, step.name)
    vectors.tie(step, shift.roles, found.roles, 1)
    return replace(found, shift=name)


def _require_whole(step: Step, vector: Vector) -> None:
    if vector.gain:
        raise unfolded(step, vector)
    if step.results or not step.reduces_whole_instances(step.carriers[0]):
        raise Limit(f"{step.name} looks at a part of its units")


def _needs_length(vectors: Vectors, step: Step) -> None:
    vectors.rotates = vectors.rotates or f"{step.name} looks at its length"


def _needs_mean(vectors: Vectors, step: Step) -> None:
    vectors.keeps_mean = vectors.keeps_mean or f"{step.name} looks at its mean"
