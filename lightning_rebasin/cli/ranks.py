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
    yield from _met()


def _met() -> Iterator[Share]:
    """Meet at torchrun's store, without a process group.

    Metrics synchronise over every process of a group; the processes here are at different points, so that they would
    wait for one another for ever, or mix their numbers.
    """
    import pickle
    from datetime import timedelta
    from itertools import count

    from torch.distributed.rendezvous import rendezvous

    from lightning_rebasin.landscape.shared_grid import Share

    store, rank, size = next(iter(rendezvous("env://")))
    # One process matches while the others wait.
    store.set_timeout(timedelta(days=7))
    numbers = count()

    def gather(own: Any) -> list[Any]:
        place = f"lightning_rebasin/{next(numbers)}"
        store.set(f"{place}/{rank}", pickle.dumps(own))
        keys = [f"{place}/{other}" for other in range(size)]
        # Written by the other processes of this very command.
        return [pickle.loads(store.get(key)) for key in keys]  # noqa: S301

    yield Share(rank, size, gather)
    # Nobody leaves before everybody has read: the first one may keep the store.
    gather(None)
