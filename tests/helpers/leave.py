"""How a helper that is one of several processes ends."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from torch import distributed


def leave() -> NoReturn:
    """Wait for the others and end at once, with everything written.

    Threads of gloo may still run while the interpreter is taken apart; a C++ thread that is destroyed before it was
    joined ends the process with "terminate called without an active exception", long after all work was done.
    """
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
