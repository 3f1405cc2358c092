"""One command as several processes: ``torchrun --nproc-per-node 4 lightning-rebasin barrier ...``.

torchrun starts the same command several times and tells each process its number.  They share the points of a barrier;
the first one matches, prints and writes.  Over several machines it is the same command with torchrun's own options.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Help and bad options must not wait for torch.
    from lightning_rebasin.landscape.shared_grid import Share


def started_by_torchrun() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def sharing() -> Iterator[Share]:
    """Join the other processes, if there are any, and leave them at the end."""
    from lightning_rebasin.landscape.shared_grid import Share

    if not started_by_torchrun():
        yield Share(0, 1, lambda own: [own])
        return
    from torch import distributed

    # Numbers and a few weights are exchanged: no GPU is needed for that, whatever measures.
    distributed.init_process_group("gloo")
    try:
        yield Share(
            distributed.get_rank(), distributed.get_world_size(), _gather
        )
    finally:
        distributed.destroy_process_group()


def _gather(own: Any) -> list[Any]:
    from torch import distributed

    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found
