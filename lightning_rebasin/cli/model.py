"""Building a model and its example input from the command line.

A model is ``--module pkg.Class`` with ``--init-args '{...}'``, or the ``model`` section of a LightningCLI
configuration.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# torch is imported where it is used: the help of a command must not wait for it.
_DTYPES = ("bool", "double", "float", "long")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say which model to build and what to feed it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--module",
        metavar="PKG.CLASS",
        help="import path of the model class, or of a function making it",
    )
    group.add_argument(
        "--init-args",
        metavar="JSON",
        help="its keyword arguments, as a JSON object",
    )
    group.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="LightningCLI configuration: its model section (class_path and init_args) is used",
    )
    group.add_argument(
        "--input-shape",
        action="append",
        type=_shape,
        metavar="N,C,H,W",
        help="shape of one input, batch first; repeat for several (default: example_input_array of the model)",
    )
    group.add_argument(
        "--input-dtype",
        action="append",
        choices=_DTYPES,
        help="dtype of each --input-shape in turn (default: float)",
    )
    group.add_argument(
        "--input-high",
        type=int,
        metavar="N",
        help="integers are drawn below N (default: the size of the smallest embedding)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the weights and inputs (default: %(default)s)",
    )


def build_model(args: argparse.Namespace) -> nn.Module:
    """Import and construct the model, with fresh seeded weights.

    Args:
        args: Parsed options of :func:`add_model_arguments`.

    Returns:
        The module.

    Raises:
        ConfigurationError: The path, the arguments or the configuration are wrong; the message names the option.
    """
    import torch
    from torch import nn

    path, settings = args.module, _json_object(args.init_args)
    if args.config is not None:
        section = _model_section(args.config)
        path = path or section.get("class_path")
        settings = {**_configured_arguments(section, args.config), **settings}
    if path is None:
        raise ConfigurationError(
            "no model: give --module PKG.CLASS, or --config with a model section"
        )
    target = _import(path)
    torch.manual_seed(args.seed)
    try:
        module = target(
            **{name: _instantiate(value) for name, value in settings.items()}
        )
    except ConfigurationError:
        raise
    except Exception as error:  # whatever the user's constructor raises
        raise ConfigurationError(
            f"--module {path}: {type(error).__name__}: {error} (see --init-args)"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"--module {path} makes a {type(module).__name__}, not a torch.nn.Module"
        )
    return module


def build_inputs(
    args: argparse.Namespace, module: nn.Module
) -> tuple[Tensor, ...]:
    """Random inputs of the given shapes; none if no shape was given.

    Args:
        args: Parsed options of :func:`add_model_arguments`.
        module: The model, asked for its embeddings.

    Returns:
        One tensor per ``--input-shape``.

    Raises:
        ConfigurationError: There is neither a shape nor an ``example_input_array``, or more dtypes than shapes.
    """
    import torch

    shapes: Sequence[tuple[int, ...]] = args.input_shape or ()
    dtypes: Sequence[str] = args.input_dtype or ()
    if not shapes and getattr(module, "example_input_array", None) is None:
        raise ConfigurationError(
            "no example input: give --input-shape, for example --input-shape 1,3,32,32, or --data"
        )
    if len(dtypes) > len(shapes):
        raise ConfigurationError(
            f"--input-dtype is given {len(dtypes)} times, --input-shape only {len(shapes)} times"
        )
    high = _largest_integer(args, module)
    generator = torch.Generator().manual_seed(args.seed)
    names = [*dtypes, *(["float"] * (len(shapes) - len(dtypes)))]
    inputs = []
    for shape, name in zip(shapes, names, strict=True):
        inputs.append(_random(shape, getattr(torch, name), high, generator))
    return tuple(inputs)


def _largest_integer(args: argparse.Namespace, module: nn.Module) -> int:
    """Integers to draw lie below this: what was asked for, or the rows of the smallest embedding."""
    from torch import nn

    high: int = 2
    rows = [
        part.num_embeddings
        for part in module.modules()
        if isinstance(part, nn.Embedding)
    ]
    if rows:
        high = min(rows)
    if args.input_high is not None:
        high = args.input_high
    if high < 1:
        raise ConfigurationError(
            f"--input-high {high} leaves no integer to draw"
        )
    return high


def _random(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    high: int,
    generator: torch.Generator,
) -> Tensor:
    import torch

    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randint(
        2 if dtype is torch.bool else high, shape, generator=generator
    ).to(dtype)


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shape such as 1,3,32,32"
        )
    return sizes


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"--init-args is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(
            f"--init-args must be a JSON object, not {type(value).__name__}"
        )
    return value


def _model_section(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "--config needs PyYAML: pip install 'lightning-rebasin[cli]'"
        ) from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"--config {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
    # `python main.py fit --print_config` writes the sections at the top; a subcommand's name may enclose them.
    section = (
        content.get("model", content) if isinstance(content, dict) else None
    )
    if (
        isinstance(section, dict)
        and "class_path" not in section
        and isinstance(section.get("fit"), dict)
    ):
        section = section["fit"].get("model")
    if isinstance(section, str):
        section = {"class_path": section}
    if not isinstance(section, dict):
        raise ConfigurationError(
            f"--config {path} has no model section with class_path and init_args"
        )
    return section


def _configured_arguments(
    section: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Keyword arguments that a model section gives; ``init_args:`` with nothing after it gives none."""
    given = section.get("init_args") if "class_path" in section else section
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"--config {path}: init_args must map names to values, not be a {type(given).__name__}"
        )
    return dict(given)


def _instantiate(value: Any) -> Any:
    """Nested ``{class_path, init_args}`` become objects, as in a LightningCLI configuration."""
    if (
        isinstance(value, Mapping)
        and "class_path" in value
        and set(value) <= {"class_path", "init_args"}
    ):
        settings = value.get("init_args") or {}
        return _import(value["class_path"])(
            **{name: _instantiate(item) for name, item in settings.items()}
        )
    if isinstance(value, list):
        return [_instantiate(item) for item in value]
    return value


def _import(path: Any) -> Any:
    if not isinstance(path, str):
        raise ConfigurationError(
            f"cannot import {path!r}: class_path must be a text of the form package.module.Class"
        )
    module_name, _, name = path.rpartition(".")
    # A console script, unlike `python -m`, does not look for modules in the working directory.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigurationError(
            f"cannot import {path!r}: {type(error).__name__}: {error} (use the form package.module.Class)"
        ) from error
