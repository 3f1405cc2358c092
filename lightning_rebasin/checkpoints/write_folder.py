"""Writing a model folder in the layout of another one, so that ``transformers`` loads it.

The folder appears whole or not at all: it is built under a temporary name beside its target and then renamed.  Where
the place to build it in is given, files that stand there already are taken as they are: an earlier process wrote them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_rebasin.checkpoints.folder import CONFIG, ModelFolder
from lightning_rebasin.checkpoints.lazy import LazyTensors
from lightning_rebasin.checkpoints.read import read_checkpoint
from lightning_rebasin.files import atomic_folder, atomic_path

#: Writes one file of weights.
WriteFile = Callable[[Path, LazyTensors], None]


def write_folder(
    target: Path,
    weights: LazyTensors,
    like: ModelFolder,
    write_file: WriteFile,
    history: tuple[str, Mapping[str, Any]] | None,
    *,
    build_in: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write weights as a model folder.

    Args:
        target: The folder to make.
        weights: The weights under the names of the files; each is asked for once.
        like: Take the division into files, the configuration and the tokenizer from this folder.
        write_file: Writes one file of weights in the format of ``like``.
        history: Name of a JSON file and what to keep in it, how the weights were made.
        build_in: A folder on the same disk that keeps what was done if the process dies.
        settings: Entries of ``config.json`` that hold for these weights and not for those of ``like``.

    Raises:
        OutputError: The folder exists or cannot be written.
    """
    with atomic_folder(target, build_in) as folder:
        _fill(folder, weights, like, write_file)
        config = folder / CONFIG
        if settings and config.is_file():
            _change_config(config, settings)
        if history is not None:
            name, content = history
            (folder / name).write_text(json.dumps(content, indent=1))


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
    weights: LazyTensors,
    like: ModelFolder,
    write_file: WriteFile,
) -> None:
    """All files of the new folder."""
    # The name of the copied folder's file may be a link into a cache; what it points at is copied.
    for file in like.companions:
        shutil.copyfile(file, folder / file.name)
    place = {name: like.place.get(name, like.files[0]) for name in weights}
    size = 0
    for file_name in like.files:
        names = [name for name in weights if place[name] == file_name]
        if (folder / file_name).exists():
            for name in names:
                weights.skip(name)
        else:
            with atomic_path(folder / file_name) as temporary:
                write_file(temporary, weights.part(names))
        size += _size(folder / file_name)
    if like.index is not None:
        index = {
            "metadata": {"total_size": size},
            "weight_map": dict(sorted(place.items())),
        }
        (folder / like.index).write_text(json.dumps(index, indent=2) + "\n")


def _size(file: Path) -> int:
    """Bytes of the tensors in a file that was written, which shows that it can be read."""
    state = read_checkpoint(file, prefix="").state_dict
    return sum(tensor.nbytes for tensor in state.values())
