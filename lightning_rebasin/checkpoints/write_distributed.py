"""Writing a folder of ``torch.distributed.checkpoint`` from one process.

Whoever loads it, on however many ranks, gets each rank's part of the tensors: that is what the format is for.  The
folder is built under a temporary name and then renamed.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_rebasin.checkpoints.distributed import REST
from lightning_rebasin.errors import OutputError
from lightning_rebasin.files import atomic_folder


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
    nested = dict(tensors) if wrapper is None else {wrapper: tensors}
    with atomic_folder(target) as folder:
        with warnings.catch_warnings():
            # That there is one process only is the point.
            warnings.simplefilter("ignore")
            try:
                save_distributed(
                    nested,
                    storage_writer=FileSystemWriter(folder),
                    **alone(save_distributed),
                )
            except Exception as error:  # torch.distributed wraps what happens in exceptions of its own
                raise OutputError(f"cannot write {target}: {error}") from error
        if rest is not None:
            save(dict(rest), folder / REST)
        if history is not None:
            name, content = history
            (folder / name).write_text(json.dumps(content, indent=1))


def alone(function: Callable[..., Any]) -> dict[str, bool]:
    """How to tell a function of ``torch.distributed.checkpoint`` that this process works by itself.

    Before torch 2.7 (``save``) and 2.8 (``load``) they have no such option, and find out for themselves.
    """
    known = inspect.signature(function).parameters
    return {"no_dist": True} if "no_dist" in known else {}
