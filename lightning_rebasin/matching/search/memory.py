"""Memory for very large models.

The C library's allocator keeps freed blocks for itself, and where blocks of many sizes come and go it keeps more and
more of them: measured, 2.7 models at 500 MB where 1.3 were in use.  Blocks that are mapped one by one go back to the
system when freed, at the price of a page fault per page: little next to the products of large matrices.
"""

from __future__ import annotations

import ctypes
import sys

#: Bytes of parameters from which memory counts more than time: nothing is kept that can be made again.
LARGE = 384 * 2**20
#: ``M_MMAP_THRESHOLD`` of glibc's ``malloc.h``.
_THRESHOLD = -3
_MEBIBYTE = 2**20


def return_large_blocks() -> None:
    """Give freed blocks of a mebibyte or more back at once, from now on; does nothing where there is no glibc."""
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None)
        if sys.platform.startswith("linux")
        else None
    )
    if mallopt is not None:
        # Setting it also stops glibc from raising it by itself. Just below, for blocks of exactly one mebibyte.
        mallopt(_THRESHOLD, _MEBIBYTE - 4096)
