"""Writing a folder of ``torch.distributed.checkpoint`` from one process.

Whoever loads it, on however many ranks, gets each rank's part of the tensors: that is what the format is for.  The
folder is built under a temporary name and then renamed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_rebasin.checkpoints.distributed import REST
from lightning_rebasin.errors import OutputError


def write_distributed(
    target: Path,
    weights: Mapping[str, Tensor],
    wrapper: str | None,
    rest: Mapping[str, Any] | None,
    *,
    save: Callable[[Any, Path], None],
    history: tuple[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write weights as such a folder.

    Args:
        target: The folder to make.
        weights: The weights.
        wrapper: The key to put them under; ``None`` for none.
        rest: What Lightning keeps beside the tensors; ``None`` for a folder that is not Lightning's.
        save: Writes that into a file.
        history: Name of a JSON file and what to keep in it, how the weights were made.

    Raises:
        OutputError: The folder exists or cannot be written.
    """
    # Loads a good part of torch.distributed, which nobody else needs.
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import (
        save as save_distributed,
    )

    tensors = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    try:
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
        )
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error} (create the folder above it first?)"
        ) from error
    try:
        with warnings.catch_warnings():
            # That there is one process only is the point.
            warnings.simplefilter("ignore")
            save_distributed(
                dict(tensors) if wrapper is None else {wrapper: tensors},
                storage_writer=FileSystemWriter(temporary),
                no_dist=True,
            )
        if rest is not None:
            save(dict(rest), temporary / REST)
        if history is not None:
            name, content = history
            (temporary / name).write_text(json.dumps(content, indent=1))
        # mkdtemp makes the folder private; a checkpoint is there to be shared.
        temporary.chmod(0o755)
        temporary.rename(target)
    except Exception as error:  # torch.distributed wraps what happens while writing in exceptions of its own
        raise OutputError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
