"""Which groups may be mixed by matrices.

A group walks through the tape as a vector (:mod:`.vectors`).  Operations that are linear in it and treat all
coordinates alike (:mod:`.linear_operations`) commute with every invertible matrix.  Others allow less
(:mod:`.norm_operations`):

- the square norm of the vector (RMSNorm): rotations;
- its mean, or a number that is added to all coordinates (LayerNorm): maps that keep (1, …, 1);
- a gain γ that multiplies the coordinates one by one: nothing, unless all that reads it is linear, for then it is
  *folded* into the readers and is 1 (:mod:`.gains`).

Everything else (a pointwise function, a softmax, a slice) ends the walk, and its name is the reason that the user is
told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from lightning_rebasin.symmetry.continuous import (
    linear_operations as linear,
)
from lightning_rebasin.symmetry.continuous import norm_operations as norm
from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.carrying import Carrying
from lightning_rebasin.symmetry.continuous.operations import (
    Limit,
    Step,
    steps_of,
)
from lightning_rebasin.symmetry.continuous.vectors import Vectors
from lightning_rebasin.symmetry.spec.folds import Fold
from lightning_rebasin.symmetry.spec.values import AxisMap, Group
from lightning_rebasin.symmetry.trace.tape import Tape


@final
@dataclass(frozen=True)
class Mixing:
    """A group whose units may be mixed.

    Args:
        kind: The largest kind that all operations allow.
        powers: For each tensor and each copy of the units in it +1 if it writes, −1 if it reads.
        limit: The operation for which the kind is not ``"linear"``; empty if it is.
        folds: Gains that have to be folded before.
        centred: Whether nothing sees the mean of what the tensors hold along the units.
    """

    kind: str
    powers: dict[str, tuple[int, ...]]
    limit: str = ""
    folds: tuple[Fold, ...] = ()
    centred: bool = False


def find_mixing(
    group: Group,
    maps: Mapping[str, AxisMap],
    tapes: Sequence[tuple[Tape, Carrying]],
) -> Mixing:
    """Go through all tapes with one group.

    Args:
        group: The group.
        maps: Where units stand in the tensors of the state.
        tapes: The tapes with what their values carry.

    Raises:
        Limit: An operation allows no mixing.
    """
    vectors = Vectors(group, maps)
    for step in steps_of(tapes, group.id, group.size):
        _check_seats(step)
        handler = _HANDLERS.get(step.op, _other)
        handler(vectors, step)
    vectors.settle_offsets()
    vectors.gains.check()
    folds = vectors.gains.folds()
    kind, limit = _kind(vectors)
    return Mixing(
        kind, vectors.powers(), limit, folds, _centred(vectors, folds)
    )


def _kind(vectors: Vectors) -> tuple[str, str]:
    """The largest kind, and why it is not larger."""
    if vectors.keeps_mean:
        return "orthogonal_mean", vectors.keeps_mean
    if vectors.rotates:
        return "orthogonal", vectors.rotates
    return "linear", ""


def _centred(vectors: Vectors, folds: Iterable[Fold]) -> bool:
    if not vectors.keeps_mean or vectors.read_plainly:
        return False
    for fold in folds:
        stays = fold.shift and not fold.absorbs_shift
        if stays:
            return False
    return True


def _check_seats(step: Step) -> None:
    for value in (*step.carriers, *step.results):
        seat = step.seat(value)
        assert seat is not None
        if seat.axes > 1:
            raise Limit(f"it stands on two axes of one tensor at {step.name}")
        if not seat.whole:
            raise Limit(f"its units are taken apart at {step.name}")


def _other(vectors: Vectors, step: Step) -> None:
    del vectors
    raise Limit(f"{step.name} treats its units one by one or in an order")


Handler = Callable[[Vectors, Step], None]
_HANDLERS: dict[str, Handler] = ops.by_operation(
    [
        (ops.COPIES, linear.copied),
        (ops.SUMS, linear.added),
        (("aten.index_add",), linear.index_added),
        (ops.ZEROS, linear.zeroed),
        (ops.PRODUCTS, linear.multiplied),
        (("aten.pow", "aten.square"), norm.raised),
        (ops.REDUCTIONS, norm.reduced),
        (ops.SPREADS, norm.spread),
        (ops.LENGTHS, norm.length),
        (ops.LAYER_NORMS, norm.layer_normed),
        (ops.RMS_NORMS, norm.rms_normed),
        (ops.CONTRACTED, linear.contracted),
        (ops.ATTENTION, linear.attended),
    ]
)
