"""How to run a network on what its data loader gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.run.lightning import STEPS, has_own_method
from lightning_rebasin.symmetry.trace.record import record


def batch_example(
    module: nn.Module,
    batch: Any,
    inputs: Callable[[Any], Example] | None = None,
) -> Example:
    """How to run a network on what its data loader gives.

    Args:
        module: The network.
        batch: A batch.
        inputs: Picks the arguments of ``forward`` out of the batch; by default the batch itself or its first item.

    Returns:
        The arguments of ``forward`` if it runs on them or the module has no step of its own, else the whole batch for
        ``validation_step`` (or ``training_step``).
    """
    own = (name for name in STEPS if has_own_method(module, name))
    step = next(own, None)
    try:
        example = (inputs or _first_item)(batch)
        if step is not None:
            # Whether forward takes this input shows only when it runs.
            record(module, example)
    except (LookupError, TraceError, ValueError):
        if step is None:
            raise
        return Example((batch,), method=step)
    return example


def _first_item(batch: Any) -> Example:
    return Example((batch[0] if isinstance(batch, Sequence) else batch,))
