"""The network that a model folder describes: ``config.json`` names a class of ``transformers``, which builds it.

Only classes of the installed ``transformers`` are used.  A folder may bring code of its own (``auto_map``): it is
a stranger's, and is not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_rebasin.checkpoints.folder import find_model_folder
from lightning_rebasin.errors import ConfigurationError, MissingExtraError
from lightning_rebasin.symmetry.run.hollow import build_hollow

#: Tokens of the example input.
_TOKENS = 8


def describes_network(path: Path) -> bool:
    """Whether a path is a model folder whose ``config.json`` names a class."""
    folder = find_model_folder(path)
    return folder is not None and bool(_classes(folder.config()))


def network_of_folder(path: Path, *, hollow: bool = False) -> nn.Module:
    """Build the network of a model folder, with an example input where it reads tokens.

    Args:
        path: The folder.
        hollow: Without the memory of the weights, which are to be loaded later.

    Returns:
        The network in eval mode; its weights are not those of the folder.  Its ``example_input_array`` is a short text
        of random tokens; networks that read something else have none.

    Raises:
        ConfigurationError: ``config.json`` names nothing that ``transformers`` has, or not what it needs.
        MissingExtraError: ``transformers`` is not installed.
    """
    folder = find_model_folder(path)
    config = {} if folder is None else folder.config()
    names = _classes(config)
    if folder is None or not names:
        raise ConfigurationError(
            f"{path}: config.json does not say which class of transformers this is: give the module (--module)"
        )
    made = _class_of(path, names[0])
    network = _built(path, made, _dtype(config), hollow=hollow)
    example = _tokens(network)
    if example is not None:
        network.example_input_array = example
    return network.eval()


def _class_of(path: Path, name: str) -> type[nn.Module]:
    """A class of ``transformers``."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is a {name}: pip install transformers, or give the module (--module)"
        ) from error
    made = getattr(transformers, name, None)
    if not isinstance(made, type) or not issubclass(made, nn.Module):
        raise ConfigurationError(
            f"{path} is a {name}, which the installed transformers {transformers.__version__} does not have (code "
            "that a folder brings along is not run): give the module (--module)"
        )
    return made


def _built(
    path: Path,
    made: type[nn.Module],
    dtype: torch.dtype | None,
    *,
    hollow: bool,
) -> nn.Module:
    """An instance of a class with the settings of ``config.json``."""
    import transformers

    try:
        settings = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
        if hollow:
            return build_hollow(lambda: made(settings), dtype)
        return made(settings)
    except (
        Exception
    ) as error:  # whatever a damaged configuration makes of the constructor
        raise ConfigurationError(
            f"{path}: transformers cannot build a {made.__name__} from config.json: {type(error).__name__}: {error}"
        ) from error


def _classes(config: Mapping[str, Any]) -> list[str]:
    """The names under ``architectures``."""
    content = config.get("config")
    names = content.get("architectures") if isinstance(content, dict) else None
    if not isinstance(names, list):
        return []
    return [name for name in names if isinstance(name, str)]


def _dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The precision of the weights, as far as ``config.json`` says; older versions call it otherwise."""
    content = config["config"]
    name = content.get("dtype") or content.get("torch_dtype")
    found = getattr(torch, name, None) if isinstance(name, str) else None
    floating = isinstance(found, torch.dtype) and found.is_floating_point
    return found if floating else None


def _tokens(network: Any) -> Any:
    """A short random text, if that is what the network reads."""
    size = getattr(network.config, "vocab_size", None)
    reads = getattr(network, "main_input_name", None)
    if reads != "input_ids" or not isinstance(size, int) or size < 1:
        return None
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(size, (1, _TOKENS), generator=generator)
    if getattr(network.config, "is_encoder_decoder", False):
        return {"input_ids": text, "decoder_input_ids": text}
    return text
