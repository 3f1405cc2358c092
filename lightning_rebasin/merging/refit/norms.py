"""Batch norms in eval mode, as operations of a tape."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_rebasin.merging.refit.fitted import Norm
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.symmetry.trace.tape import Node

BATCH_NORMS = frozenset(
    (
        "aten._native_batch_norm_legit_no_training",
        "aten.native_batch_norm",
        "aten.cudnn_batch_norm",
        "aten.miopen_batch_norm",
    )
)
#: What the operands of a batch norm are called.
STATISTICS = ("running_mean", "running_var", "weight", "bias")


def norm_of(node: Node, found: Mapping[str, Slots | None]) -> Norm | None:
    """A batch norm with the given slots; None if it has no statistics."""
    mean, variance, gain, offset = (found[name] for name in STATISTICS)
    if mean is None or variance is None:
        return None
    given = node.arguments
    epsilon = float(given.get("eps", given.get("epsilon", 0.0)))
    return Norm(mean, variance, gain, offset, epsilon)
