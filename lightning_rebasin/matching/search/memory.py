"""Memory for very large models, and for very small ones.

The C library's allocator keeps freed blocks for itself, and where blocks of many sizes come and go it keeps more and
more of them: measured, 2.7 models at 500 MB where 1.3 were in use.  Blocks that are mapped one by one go back to the
system when freed, at the price of a page fault per page: little next to the products of large matrices.

For a model of a megabyte it is the other way round: until the process has freed a larger block, the allocator returns
everything from 128 KiB on at once, and a matching that takes 10 ms spends 5 ms more on page faults.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

#: Bytes of parameters from which memory counts more than time: nothing is kept that can be made again.
LARGE = 384 * 2**20
#: ``M_MMAP_THRESHOLD`` of glibc's ``malloc.h``.
_THRESHOLD = -3
_MEBIBYTE = 2**20


@cache
def reuse_small_blocks() -> None:
    """Let the allocator keep freed blocks of up to 16 mebibytes for the next time; does nothing without glibc.

    glibc raises its threshold to the size of the largest block freed so far, so freeing one, never touched, is enough.
    Unlike a threshold that is set, this leaves it free to go on adapting.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "mallopt"):
        library.malloc.restype, library.malloc.argtypes = (
            ctypes.c_void_p,
            [ctypes.c_size_t],
        )
        library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
        library.free(library.malloc(16 * _MEBIBYTE))


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
