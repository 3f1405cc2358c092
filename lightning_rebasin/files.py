"""Writing files so that a reader never sees half of one.

Everything the package writes goes to a temporary name beside the target first and is then renamed over it: a crash, a
full disk or a kill leaves either the old file or the new one.
"""

from __future__ import annotations

import os
import shutil
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


@contextmanager
def atomic_folder(
    target: str | Path, build_in: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; rename it to ``target`` on success, remove it on any failure.

    Args:
        target: The folder to make.
        build_in: A folder on the same disk to fill instead, which stays on failure: another process may go on with it.

    Raises:
        OutputError: The folder exists, or cannot be written.
    """
    target = Path(target)
    if target.exists():
        raise OutputError(
            f"{target} exists already, and a folder is never overwritten; choose another name"
        )
    temporary = build_in
    try:
        if temporary is None:
            made = tempfile.mkdtemp(
                prefix=f".{target.name}.", dir=target.parent
            )
            temporary = Path(made)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error} (create the folder above it first?)"
        ) from error
    try:
        yield temporary
        # mkdtemp makes the folder private; what is written is there to be shared.
        temporary.chmod(0o755)
        temporary.rename(target)
    except OutputError:
        # It says already which file could not be written.
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}"
        ) from error
    finally:
        if build_in is None:
            shutil.rmtree(temporary, ignore_errors=True)


def atomic_write_text(target: str | Path, text: str) -> None:
    """Write UTF-8 text to ``target`` atomically.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
