"""``lightning-rebasin completion``: a script that teaches a shell to complete commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_rebasin.errors import MissingExtraError

HELP = "print a script that completes commands and options in your shell"
SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Prints a script for your shell.  Completion works in every shell that reads the script when it starts.\n"
        "Needs the package shtab: pip install 'lightning-rebasin[cli]'"
    )
    parser.epilog = (
        "examples:\n"
        "  lightning-rebasin completion bash > ~/.local/share/bash-completion/completions/lightning-rebasin\n"
        "  lightning-rebasin completion zsh > ~/.zfunc/_lightning-rebasin"
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError(
            "completion needs shtab: pip install 'lightning-rebasin[cli]'"
        ) from error
    parser = whole_parser()
    for action in _actions(parser):
        if action.type is Path:
            # This attribute is how shtab is told; argparse has no word for it.
            vars(action)["complete"] = shtab.FILE
    print(shtab.complete(parser, shell=args.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands.

    The command line itself builds only the parser of the command that was asked for, because importing all takes time.
    """
    from lightning_rebasin.cli.main import TOP

    parser = argparse.ArgumentParser(prog=TOP.program)
    parser.add_argument(
        "-V", "--version", action="store_true", help="print the version"
    )
    _add_commands(parser, TOP)
    return parser


def _add_commands(parser: argparse.ArgumentParser, group: Any) -> None:
    """Add the commands of a group, and of groups inside it."""
    commands = parser.add_subparsers()
    for name in group.commands:
        command = group.find(name)
        own = commands.add_parser(name, help=command.HELP)
        if hasattr(command, "COMMANDS"):
            _add_commands(own, group.inner(name))
        else:
            command.add_arguments(own)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument, of the commands too."""
    # argparse has no public list of its options.
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                yield from _actions(inner)
