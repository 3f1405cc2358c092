"""Writing files so that a reader never sees half of one.

Everything the package writes goes to a temporary name beside the target first and is then renamed over it: a crash, a
full disk or a kill leaves either the old file or the new one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_rebasin.errors import OutputError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it over ``target`` on success, remove it on any failure.

    Args:
        target: The file to write.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    target = Path(target)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        )
        os.close(handle)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error} (create the folder first?)"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; give it the permissions any new file of this user would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def atomic_write_text(target: str | Path, text: str) -> None:
    """Write UTF-8 text to ``target`` atomically.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
