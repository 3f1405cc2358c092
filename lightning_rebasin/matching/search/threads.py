"""Small products run on one thread.

A product of two small matrices takes some microseconds.  Shared between threads it takes as long as the slowest of them
needs to be scheduled, and on a machine where other processes compute (a training with data-loader workers) that is
milliseconds, for each of the thousands of products of an annealed start.  So a matching whose sweeps are short runs on
one thread; what the caller has set comes back afterwards, whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Floating-point operations of one sweep below which further threads cost more than they bring.
SMALL = 2e8


@contextmanager
def few_threads(work: float) -> Iterator[None]:
    """Run short sweeps on one thread.

    Args:
        work: Floating-point operations of one sweep.

    Example:
        >>> before = torch.get_num_threads()
        >>> with few_threads(1e6):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    if work >= SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
