"""Options that several commands share: the network, how files are read, where the result goes."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from lightning_rebasin.checkpoints import Checkpoint
    from lightning_rebasin.symmetry import PermutationSpec


def add_model_arguments(
    parser: argparse.ArgumentParser, *, spec: bool = True
) -> None:
    """Declare where the network comes from."""
    from lightning_rebasin.cli import model

    model.add_model_arguments(parser)
    if spec:
        parser.add_argument(
            "--spec",
            type=Path,
            metavar="JSON",
            help="spec written by 'lightning-rebasin spec': no model code is needed",
        )


def add_kinds_argument(parser: argparse.ArgumentParser) -> None:
    """Declare which kinds of symmetry are looked for."""
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["permutation"],
        metavar="KIND",
        help="kinds of symmetry to look for: 'all', or some of permutation, sign, scale, orthogonal, orthogonal_mean, "
        "linear, plane, and those that modules declare (soft trees: flips, splits); transformers need 'all' "
        "(default: permutation)",
    )


def kinds_of(args: argparse.Namespace) -> str | tuple[str, ...]:
    """The kinds that were asked for, as :func:`~lightning_rebasin.infer_spec` takes them."""
    # Commands that only know permutations do not declare the option.
    kinds = getattr(args, "kinds", ["permutation"])
    return "all" if "all" in kinds else tuple(kinds)


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how checkpoints are read."""
    group = parser.add_argument_group("reading files")
    group.add_argument(
        "--weights",
        default="state_dict",
        metavar="WHICH",
        help="'state_dict' (averaged weights if WeightAveraging wrote the file), 'current' (the live ones), or any "
        "key of the file (default: %(default)s)",
    )
    group.add_argument(
        "--prefix",
        action="append",
        metavar="OLD[=NEW]",
        help="remove a prefix from the tensors' names, or replace it; by default 'module.' and '_orig_mod.' go",
    )
    group.add_argument(
        "--unsafe",
        action="store_true",
        help="unpickle in full what cannot be read safely: runs any code in the file, only for people you trust",
    )


def add_output_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare where the result goes."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=what
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite OUT if it exists"
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bars"
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Declare that the result is wanted as JSON; see :func:`keep_result`."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object and nothing else; what is printed otherwise goes to the error stream",
    )


def keep_result(args: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Leave what ``--json`` prints when the command has ended.

    Args:
        args: Parsed options; what is kept travels in them to :func:`lightning_rebasin.cli.main.main`.
        content: Whatever JSON can say; paths are written as text.
    """
    args.result = content


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`~lightning_rebasin.checkpoints.inputs.read_inputs`."""
    prefix: Any = None
    if args.prefix:
        pairs = [item.partition("=") for item in args.prefix]
        replaced = len(pairs) > 1 or any(sign for _, sign, _ in pairs)
        prefix = (
            {old: new for old, _, new in pairs} if replaced else args.prefix[0]
        )
    return {"weights": args.weights, "prefix": prefix, "unsafe": args.unsafe}


def load_module(
    args: argparse.Namespace, checkpoint: Checkpoint
) -> nn.Module | None:
    """The network of ``--module`` or ``--config``, ``None`` if neither is given.

    A class of ``--module`` gets the hyper-parameters that the checkpoint stores, as far as it accepts them, overridden
    by ``--init-args``.

    Raises:
        ConfigurationError: It cannot be imported or made.
    """
    from lightning_rebasin.cli import model

    if not args.module and not args.config:
        return None
    if args.module and not args.config:
        stored = _stored_arguments(load_object(args.module), checkpoint)
        given = (
            json.loads(args.init_args)
            if args.init_args and _is_json_object(args.init_args)
            else None
        )
        if args.init_args is None or given is not None:
            args = argparse.Namespace(
                **{
                    **vars(args),
                    "init_args": json.dumps({**stored, **(given or {})}),
                }
            )
    return model.build_model(args).eval()


def described_module(args: argparse.Namespace, path: Path) -> nn.Module | None:
    """The network that a Hugging Face folder describes, where nothing else says what it is.

    Args:
        args: Parsed options.
        path: The first checkpoint.

    Raises:
        ConfigurationError: Its ``config.json`` names a class that ``transformers`` cannot build.
    """
    from lightning_rebasin.checkpoints.architecture import (
        describes_network,
        network_of_folder,
    )

    if args.module or args.config or args.spec or not describes_network(path):
        return None
    # Other kinds of symmetry are proved with weights before any file is read; data run through the network.
    hollow = kinds_of(args) == ("permutation",) and not args.data
    return network_of_folder(path, hollow=hollow)


def load_example(args: argparse.Namespace, module: nn.Module | None) -> Any:
    """Random inputs of ``--input-shape``, ``None`` without the option."""
    from lightning_rebasin.cli import model

    return (
        model.build_inputs(args, module)
        if module is not None and args.input_shape
        else None
    )


def load_spec(
    args: argparse.Namespace, module: nn.Module | None, batches: Any
) -> PermutationSpec:
    """The spec of ``--spec``, or the one that is inferred from the network.

    Args:
        args: Parsed options.
        module: The network, ``None`` if there is none.
        batches: Training batches, or ``None``: an example input may be taken from them.

    Raises:
        ConfigurationError: There is neither a spec nor a network.
        SpecError: The file of the spec cannot be read.
    """
    from lightning_rebasin.checkpoints.align import example_input
    from lightning_rebasin.symmetry import PermutationSpec, infer_spec

    if args.spec:
        return PermutationSpec.load(args.spec)
    if module is None:
        raise ConfigurationError(
            "say what the network is: --module, --config or --spec"
        )
    example = load_example(args, module)
    inputs = example_input(module, example, batches)
    return infer_spec(module, *inputs, kinds=kinds_of(args))


def load_object(place: str) -> Any:
    """Import ``package.module.Name``; the working folder is searched too.

    Raises:
        ConfigurationError: There is no such module or name, or importing it fails.
    """
    left, _, name = place.rpartition(".")
    if not left or not name:
        raise ConfigurationError(
            f"{place!r} is not an import path such as package.module.Name"
        )
    search_here()
    try:
        return getattr(importlib.import_module(left), name)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigurationError(
            f"cannot import {place!r}: {type(error).__name__}: {error}"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a report."""
    from lightning_rebasin.files import atomic_write_text

    atomic_write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def check_format(path: Path, *more: str) -> None:
    """Raise before anything is measured if nothing can write a file of this name.

    Args:
        path: The file to write.
        *more: Suffixes beside .csv, .json and those of pictures.

    Raises:
        ConfigurationError: It is not the name of a picture, a .csv or a .json file.
        MissingExtraError: It is a picture, and matplotlib is not installed.
    """
    if path.suffix in ("", ".json", ".csv", *more):
        return
    from lightning_rebasin.plotting import require_matplotlib

    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise ConfigurationError(
            f"cannot write {path}: the name must end in {', '.join(['.csv', '.json', *more])} or a format of pictures "
            f"({', '.join(known)})"
        )


def search_here() -> None:
    """A console script, unlike ``python -m``, does not look for modules in the working folder."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)


def _stored_arguments(place: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """Hyper-parameters of the checkpoint that the class accepts and that JSON can say."""
    stored = checkpoint.metadata.get("hyper_parameters")
    if not inspect.isclass(place) or not isinstance(stored, Mapping):
        return {}
    parameters = inspect.signature(place).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        str(name): value
        for name, value in stored.items()
        if (name in parameters or anything)
        and not str(name).startswith("_")
        and _is_json(value)
    }


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
