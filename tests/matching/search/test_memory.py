"""What the allocator keeps, seen in how many blocks it has mapped one by one, each in a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
from helpers.planted import chain

from lightning_rebasin.matching import match_weights
from lightning_rebasin.matching.search import memory, pair
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

GLIBC = "glibc" in str(
    os.confstr("CS_GNU_LIBC_VERSION")
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
    else ""
)
needs_glibc = pytest.mark.skipif(not GLIBC, reason="the C library's own")
#: ``mapped(bytes)`` says whether the allocator maps a block of that size; the block is freed at once.
SCRIPT = """
import ctypes, runpy
memory = runpy.run_path({path!r})
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library.mallinfo2.restype = Info

def mapped(size):
    before = library.mallinfo2().hblks
    block = library.malloc(size)
    after = library.mallinfo2().hblks
    library.free(block)
    return after > before

MEBIBYTE = 2**20
{code}
"""


def printed(code: str) -> list[str]:
    """The words that a fresh process prints."""
    script = SCRIPT.format(path=memory.__file__, code=code)
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@needs_glibc
def test_without_any_of_it_a_mebibyte_is_mapped() -> None:
    """The control: so it is to begin with, until a larger block was freed."""
    assert printed("print(mapped(MEBIBYTE))") == ["True"]


@needs_glibc
def test_large_blocks_go_back_from_now_on() -> None:
    """Even after large ones were freed, which makes the allocator keep more by itself."""
    code = """
mapped(16 * MEBIBYTE)
memory["return_large_blocks"]()
print(mapped(MEBIBYTE), mapped(20 * MEBIBYTE), mapped(MEBIBYTE))
print(mapped(MEBIBYTE // 2))
"""
    assert printed(code) == ["True", "True", "True", "False"]


def test_nothing_is_done_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system the C library is not even opened; another C library is left alone."""
    function = memory.return_large_blocks

    def refused(_: object) -> None:
        raise AssertionError("opened")

    with monkeypatch.context() as other:
        other.setattr(sys, "platform", "win32")
        other.setattr(ctypes, "CDLL", refused)
        function()
    with monkeypatch.context() as musl:
        musl.setattr(sys, "platform", "linux")
        # It has neither mallopt nor, here, anything else that could be called.
        musl.setattr(ctypes, "CDLL", lambda _: object())
        function()


def test_a_matching_that_keeps_nothing_finds_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, a, b = chain((10, 80, 70, 5), 0)
    spec = PermutationSpec.from_table(table, a)
    kept = match_weights(spec, a, b)
    asked: list[bool] = []
    monkeypatch.setattr(pair, "LARGE", 0)
    monkeypatch.setattr(
        pair, "return_large_blocks", lambda: asked.append(True)
    )
    frugal = match_weights(spec, a, b)
    assert asked == [True]
    assert frugal.permutation == kept.permutation
    assert frugal.objective == kept.objective
