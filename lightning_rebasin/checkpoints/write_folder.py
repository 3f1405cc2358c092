"""Writing a model folder in the layout of another one, so that ``transformers`` loads it.

The folder appears whole or not at all: it is built under a temporary name beside its target and then renamed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_rebasin.checkpoints.folder import CONFIG, ModelFolder
from lightning_rebasin.errors import OutputError

#: Writes one file of weights.
WriteFile = Callable[[Path, Mapping[str, Tensor]], None]


def write_folder(
    target: Path,
    weights: Mapping[str, Tensor],
    like: ModelFolder,
    write_file: WriteFile,
    history: tuple[str, Mapping[str, Any]] | None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write weights as a model folder.

    Args:
        target: The folder to make.
        weights: The weights under the names of the files.
        like: Take the division into files, the configuration and the tokenizer from this folder.
        write_file: Writes one file of weights in the format of ``like``.
        history: Name of a JSON file and what to keep in it, how the weights were made.
        settings: Entries of ``config.json`` that hold for these weights and not for those of ``like``.

    Raises:
        OutputError: The folder exists or cannot be written.
    """
    if target.exists():
        raise OutputError(
            f"{target} exists already, and a folder is never overwritten; choose another name"
        )
    try:
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
        )
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error} (create the folder above it first?)"
        ) from error
    try:
        _fill(temporary, weights, like, write_file)
        config = temporary / CONFIG
        if settings and config.is_file():
            _change_config(config, settings)
        if history is not None:
            name, content = history
            (temporary / name).write_text(json.dumps(content, indent=1))
        # mkdtemp makes the folder private; a folder of a model is there to be shared.
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _change_config(file: Path, settings: Mapping[str, Any]) -> None:
    """Set entries of a configuration, and of the configurations inside it that have them too."""
    config = json.loads(file.read_text(encoding="utf-8"))
    _set_inside(config, settings)
    config.update(settings)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _set_inside(config: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Models of text and images keep one configuration for each part."""
    for part in config.values():
        if isinstance(part, dict):
            known = part.keys() & settings.keys()
            part.update({name: settings[name] for name in known})
            _set_inside(part, settings)


def _fill(
    folder: Path,
    weights: Mapping[str, Tensor],
    like: ModelFolder,
    write_file: WriteFile,
) -> None:
    """All files of the new folder."""
    # The name of the copied folder's file may be a link into a cache; what it points at is copied.
    for file in like.companions:
        shutil.copyfile(file, folder / file.name)
    place = {name: like.place.get(name, like.files[0]) for name in weights}
    for file_name in like.files:
        own = {n: t for n, t in weights.items() if place[n] == file_name}
        write_file(folder / file_name, own)
    if like.index is not None:
        sizes = (t.numel() * t.element_size() for t in weights.values())
        index = {
            "metadata": {"total_size": sum(sizes)},
            "weight_map": dict(sorted(place.items())),
        }
        (folder / like.index).write_text(json.dumps(index, indent=2) + "\n")
