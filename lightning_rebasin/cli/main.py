"""The command line: finds the command, turns errors into one line each.

Every command is a file of this folder with ``HELP``, ``add_arguments(parser)`` and ``run(args) -> int``.  Only the file
of the command that was asked for is imported.  A folder in it is a group of commands, ``landscape curve`` and so on:
its ``__init__`` has ``HELP``, ``DESCRIPTION`` and ``COMMANDS``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn, TextIO, final

from lightning_rebasin.errors import RebasinError, RebasinWarning

#: In the order in which a newcomer needs them.
COMMANDS = (
    "demo",
    "spec",
    "match",
    "apply",
    "merge",
    "barrier",
    "landscape",
    "inputs",
    "completion",
)
_DESCRIPTION = (
    "Linear mode connectivity: find the permutation symmetries of a network, bring checkpoints into one basin, measure "
    "the loss barrier between them, merge them."
)


@final
@dataclass(frozen=True)
class Group:
    """Commands behind one name.

    Args:
        program: What is typed before the command.
        package: Where its files are.
        commands: Their names, in the order of the overview.
        description: What they are for.
    """

    program: str
    package: str
    commands: tuple[str, ...]
    description: str

    def find(self, name: str) -> Any:
        """The module of a command."""
        return import_module(f"{self.package}.{name}")

    def inner(self, name: str) -> Group:
        """The group of commands behind one of the names."""
        package = self.find(name)
        return Group(
            f"{self.program} {name}",
            package.__name__,
            package.COMMANDS,
            package.DESCRIPTION,
        )

    def overview(self) -> str:
        """Every command in one line."""
        lines = [
            self.description,
            "",
            f"usage: {self.program} COMMAND [options]",
            "",
            "commands:",
        ]
        width = max(len(name) for name in self.commands)
        for name in self.commands:
            lines.append(f"  {name:<{width}}  {self.find(name).HELP}")
        return "\n".join(
            [
                *lines,
                "",
                f"{self.program} COMMAND --help explains a command's options.",
            ]
        )


#: What ``lightning-rebasin`` alone knows.
TOP = Group(
    "lightning-rebasin", "lightning_rebasin.cli", COMMANDS, _DESCRIPTION
)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints fit on one line."""

    def error(self, message: str) -> NoReturn:
        """Print the complaint and leave with status 2."""
        self.exit(
            2, f"{self.prog}: error: {message} (see {self.prog} --help)\n"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the program's name; those of the process if omitted.

    Returns:
        0, or 2 if the arguments, the files or the data were at fault, or 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-V", "--version"):
        from lightning_rebasin import __version__

        print(f"lightning-rebasin {__version__}")
        return 0
    return _choose(TOP, arguments)


def _choose(group: Group, arguments: list[str]) -> int:
    """Run the command that the first argument names."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(group.overview())
        return 0 if arguments else 2
    if name not in group.commands:
        print(
            f"{group.program}: error: there is no command {name!r}; choose from {', '.join(group.commands)}",
            file=sys.stderr,
        )
        return 2
    command = group.find(name)
    if hasattr(command, "COMMANDS"):
        return _choose(group.inner(name), arguments[1:])
    parser = parser_of(command, f"{group.program} {name}")
    args = parser.parse_args(arguments[1:])
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(command, args, parser.prog)


def parser_of(command: Any, program: str) -> Parser:
    """The parser of one command.

    Args:
        command: A module of this package.
        program: What is typed to reach it, ``lightning-rebasin merge`` for instance.
    """
    parser = Parser(
        prog=program, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    return parser


def _run(command: Any, args: argparse.Namespace, program: str) -> int:
    try:
        if getattr(args, "json", False):
            return _run_for_scripts(command, args)
        return int(command.run(args))
    except RebasinError as error:
        message = " ".join(str(error).split())
        print(f"{program}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"{program}: interrupted; nothing was left half-written",
            file=sys.stderr,
        )
        return 130


def _run_for_scripts(command: Any, args: argparse.Namespace) -> int:
    """Print the result as JSON alone: what the command says on the way goes to the error stream."""
    with contextlib.redirect_stdout(sys.stderr):
        code = int(command.run(args))
    print(json.dumps(args.result, indent=1, default=str))
    return code


def _show_warning(  # noqa: PLR0917
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are for the user; those of libraries are not about anything they can change here."""
    del filename, lineno, file, line
    if issubclass(category, RebasinWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
