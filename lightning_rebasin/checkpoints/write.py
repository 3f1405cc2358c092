"""Writing checkpoints that Lightning and ``torch.load(weights_only=True)`` accept.

What a Lightning checkpoint must hold was measured: ``load_from_checkpoint`` needs the version key and the
hyper-parameters, ``trainer.test`` the same, ``trainer.fit`` also ``optimizer_states`` and ``lr_schedulers``, which
may be empty (training then starts afresh from these weights); ``loops`` must be whole or absent.  State of the run that
made the file (loops, callbacks, optimizers, schedulers, precision scalers, averaging) is false for other weights and is
dropped, unless the caller passes it on.

Whatever cannot be loaded with ``weights_only=True`` is dropped too and reported; the finished file is read back in that
mode before it gets its name.
"""

from __future__ import annotations

import errno
import json
from collections import OrderedDict
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.checkpoints.folder import find_model_folder
from lightning_rebasin.checkpoints.lazy import LazyTensors
from lightning_rebasin.checkpoints.read import VERSION_KEY, Checkpoint, Format
from lightning_rebasin.checkpoints.storable import storable
from lightning_rebasin.checkpoints.write_distributed import write_distributed
from lightning_rebasin.checkpoints.write_folder import write_folder
from lightning_rebasin.checkpoints.write_safetensors import write_safetensors
from lightning_rebasin.errors import CheckpointError, OutputError
from lightning_rebasin.files import atomic_path
from lightning_rebasin.symmetry.run.untie import TIED_SETTING

#: Where provenance is kept: a key of the checkpoint, an attribute of a bare state dict, a header entry of safetensors.
PROVENANCE_KEY = "lightning_rebasin"
_TESTED_LIGHTNING = "2.6.6"
#: A name with this is a folder of torch.distributed.checkpoint.
DISTRIBUTED_SUFFIX = ".distcp"
#: The key under which Lightning's FSDP strategy keeps the weights in such a folder.
_SHARDED_KEY = "model"
#: A name with one of these is a file even if the model came from a folder.
_TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin"})
#: Keys of a Lightning checkpoint that describe one training run, not the weights.
RUN_STATE = frozenset(
    {
        "epoch",
        "global_step",
        "loops",
        "callbacks",
        "optimizer_states",
        "lr_schedulers",
        "MixedPrecision",
        "native_amp_scaling_state",
        "amp_scaling_state",
        "current_model_state",
        "averaging_state",
        # before Lightning 1.0 found its present layout
        "checkpoint_callback_best",
        "checkpoint_callback_best_model_score",
        "checkpoint_callback_best_model_path",
        "early_stop_callback_wait",
        "early_stop_callback_patience",
        "early_stop_callback_state_dict",
        PROVENANCE_KEY,
        VERSION_KEY,
    }
)


def write_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    *,
    like: Checkpoint | None = None,
    provenance: Mapping[str, Any] | None = None,
    run_state: Mapping[str, Any] | None = None,
    force: bool = False,
    build_in: Path | None = None,
    untied: bool = False,
) -> tuple[str, ...]:
    """Write weights as a checkpoint, atomically.

    The extension decides the format where it can: ``.ckpt`` is a Lightning checkpoint, ``.safetensors`` is safetensors,
    ``.pt``, ``.pth`` and ``.bin`` are files of ``torch.save``, ``.distcp`` is a folder of
    ``torch.distributed.checkpoint``; otherwise it is the format of ``like`` (of a Hugging Face folder a folder with the
    same files, configuration and tokenizer), or a bare state dict.

    Args:
        path: The file, or the folder, to write.
        state_dict: The weights.  Lazy ones are computed one at a time where the format is safetensors.
        like: Take names, wrapper key, hyper-parameters and the module's own entries from this checkpoint.
        provenance: How the weights were made: plain values and tensors.
        run_state: Entries of a training run that hold for these weights too, such as permuted optimizer states.
        force: Overwrite an existing file.
        build_in: Where a folder is built, to be taken up by another process if this one dies.
        untied: The weights have tensors of their own where the network of ``like`` has a tied one; the configuration of
            a model folder says so.

    Returns:
        Names of metadata that were dropped because ``weights_only=True`` would refuse them (a loss function among the
        hyper-parameters, say).

    Raises:
        OutputError: The file exists, or the folder cannot be written.
        CheckpointError: The weights cannot be stored.
    """
    path = Path(path)
    check_target(path, force=force)
    kind = output_format(path, like)
    names = like.names if like is not None else {}
    lazy = LazyTensors.of(state_dict).renamed(names)
    dropped: list[str] = []
    if kind == "folder" and like is not None:
        _save_folder(
            path,
            lazy,
            like,
            provenance or {},
            build_in=build_in,
            untied=untied,
        )
        return ()
    if kind == "distributed":
        _save_distributed(path, lazy, like, provenance, dropped)
        return tuple(dropped)
    with atomic_path(path) as temporary:
        if kind == "safetensors":
            _save_safetensors(temporary, lazy, provenance or {})
            return ()
        weights = OrderedDict(_compact(lazy))
        if kind == "lightning":
            payload: Any = _lightning_payload(
                weights, like, provenance, run_state, dropped
            )
        else:
            payload = _torch_payload(
                weights, like.wrapper if like else None, provenance, dropped
            )
        _save(payload, temporary)
        _check_written(temporary, path)
    return tuple(dropped)


def check_target(path: Path, *, force: bool) -> None:
    """Raise early if ``path`` cannot become a new file.

    Raises:
        OutputError: It exists, is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise OutputError(
            f"{path} is a folder that exists already; name a file in it, or a new folder"
        )
    if path.exists() and not force:
        raise OutputError(
            f"{path} exists already; choose another name, or overwrite it with force=True (--force)"
        )
    if not path.parent.is_dir():
        raise OutputError(
            f"the folder {path.parent} does not exist; create it first"
        )


def output_format(path: Path, like: Checkpoint | None) -> Format:
    """Format of a file to be written, by extension first, then by its model."""
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix == ".ckpt":
        return "lightning"
    if path.suffix == DISTRIBUTED_SUFFIX:
        return "distributed"
    if like is None or like.format == "safetensors":
        return "torch"
    if (
        like.format in ("folder", "distributed")
        and path.suffix in _TORCH_SUFFIXES
    ):
        return "torch"
    return like.format


def _lightning_payload(
    weights: Mapping[str, Tensor],
    like: Checkpoint | None,
    provenance: Mapping[str, Any] | None,
    run_state: Mapping[str, Any] | None,
    dropped: list[str],
) -> dict[str, Any]:
    kept = {}
    if like is not None and VERSION_KEY in like.metadata:
        kept = {
            key: value
            for key, value in like.metadata.items()
            if key not in RUN_STATE
        }
    fresh = {
        "epoch": 0,
        "global_step": 0,
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    payload = {
        **fresh,
        **storable({**kept, **(run_state or {})}, "", dropped),
    }
    payload[VERSION_KEY] = _lightning_version(like if run_state else None)
    payload["state_dict"] = weights
    if provenance is not None:
        payload[PROVENANCE_KEY] = storable(provenance, PROVENANCE_KEY, dropped)
    return payload


def _lightning_version(like: Checkpoint | None) -> str:
    """The version whose layout the file has: the original's if its run state is kept, the installed one otherwise."""
    if like is not None and VERSION_KEY in like.metadata:
        return str(like.metadata[VERSION_KEY])
    for name in ("lightning", "pytorch-lightning"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return _TESTED_LIGHTNING


def _torch_payload(
    weights: OrderedDict[str, Tensor],
    wrapper: str | None,
    provenance: Mapping[str, Any] | None,
    dropped: list[str],
) -> Any:
    history = (
        None
        if provenance is None
        else storable(provenance, PROVENANCE_KEY, dropped)
    )
    if wrapper is not None:
        return {wrapper: weights} | (
            {} if history is None else {PROVENANCE_KEY: history}
        )
    if (
        history is not None
    ):  # an extra key would break load_state_dict(torch.load(...)); an attribute travels along
        setattr(weights, PROVENANCE_KEY, history)
    return weights


def _save_safetensors(
    path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> None:
    header = {"format": "pt"}
    if provenance:
        header[PROVENANCE_KEY] = json.dumps(provenance, default=_jsonable)
    write_safetensors(path, weights, header)


def _save_folder(
    path: Path,
    weights: LazyTensors,
    like: Checkpoint,
    provenance: Mapping[str, Any],
    *,
    build_in: Path | None,
    untied: bool,
) -> None:
    """A folder in the layout of the one that ``like`` was read from."""
    model = find_model_folder(like.path)
    if model is None:
        raise CheckpointError(
            f"{like.path} is no longer the model folder that was read"
        )
    history = _beside(provenance)

    def write_file(file: Path, tensors: LazyTensors) -> None:
        if model.safe:
            _save_safetensors(file, tensors, {})
        else:
            _save(_compact(tensors), file)

    write_folder(
        path,
        weights,
        model,
        write_file,
        history,
        build_in=build_in,
        settings={TIED_SETTING: False} if untied else {},
    )


def _beside(
    provenance: Mapping[str, Any] | None,
) -> tuple[str, Mapping[str, Any]] | None:
    """Name and content of the file of a folder that says how the weights were made."""
    if not provenance:
        return None
    plain = json.loads(json.dumps(provenance, default=_jsonable))
    return f"{PROVENANCE_KEY}.json", plain


def _save_distributed(
    path: Path,
    weights: Mapping[str, Tensor],
    like: Checkpoint | None,
    provenance: Mapping[str, Any] | None,
    dropped: list[str],
) -> None:
    """A folder of ``torch.distributed.checkpoint``, Lightning's if the model came from Lightning."""
    wrapper = None if like is None else like.wrapper
    rest: dict[str, Any] | None = None
    if like is not None and VERSION_KEY in like.metadata:
        rest = _lightning_payload({}, like, provenance, None, dropped)
        # These lie in the folder itself, or nowhere.
        del rest["state_dict"], rest["optimizer_states"]
        if like.format != "distributed":
            wrapper = _SHARDED_KEY
    write_distributed(
        path,
        _compact(weights),
        wrapper,
        rest,
        save=_save,
        history=_beside(provenance) if rest is None else None,
    )


def _save(payload: Any, path: Path) -> None:
    """Through an open file, because ``torch.save`` would otherwise write the temporary name into the archive."""
    with path.open("wb") as file:
        try:
            torch.save(payload, file)
        except (
            RuntimeError
        ) as error:  # how torch's zip writer reports that the disk is full
            raise OSError(
                errno.EIO, f"writing failed: {str(error).splitlines()[0]}"
            ) from error


def _jsonable(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else str(value)


def _check_written(temporary: Path, path: Path) -> None:
    try:
        torch.load(temporary, map_location="meta", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} was not written: it could not be loaded again ({error})"
        ) from error


def _compact(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clone tensors that are small views of something larger, which ``torch.save`` would store whole.

    Names that share a tensor go on sharing it.
    """
    clones: dict[tuple[object, ...], Tensor] = {}
    result = {}
    for name, value in state.items():
        tensor = value.detach()
        if (
            tensor.layout == torch.strided
            and tensor.untyped_storage().nbytes()
            > tensor.numel() * tensor.element_size()
        ):
            key = (
                tensor.data_ptr(),
                tensor.dtype,
                tuple(tensor.shape),
                tensor.stride(),
            )
            tensor = clones.setdefault(key, tensor.clone())
        result[name] = tensor
    return result
