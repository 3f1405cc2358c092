"""The command line: finds the command, turns errors into one line each.

Every command is a file of this folder with ``HELP``, ``add_arguments(parser)`` and ``run(args) -> int``.  Only the file
of the command that was asked for is imported.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, TextIO

from lightning_rebasin.errors import RebasinError, RebasinWarning

#: In the order in which a newcomer needs them.
COMMANDS = ("demo", "spec", "match", "apply", "merge", "barrier", "inputs")
_DESCRIPTION = (
    "Linear mode connectivity: find the permutation symmetries of a network, bring checkpoints into one basin, measure "
    "the loss barrier between them, merge them."
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
    name = arguments[0] if arguments else "--help"
    if name in ("-V", "--version"):
        from lightning_rebasin import __version__

        print(f"lightning-rebasin {__version__}")
        return 0
    if name in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if name not in COMMANDS:
        print(
            f"lightning-rebasin: error: there is no command {name!r}; choose from {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    command = import_module(f"lightning_rebasin.cli.{name}")
    parser = Parser(
        prog=f"lightning-rebasin {name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    args = parser.parse_args(arguments[1:])
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(command, args, parser.prog)


def _run(command: Any, args: argparse.Namespace, program: str) -> int:
    try:
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


def _overview() -> str:
    lines = [
        _DESCRIPTION,
        "",
        "usage: lightning-rebasin COMMAND [options]",
        "",
        "commands:",
    ]
    for name in COMMANDS:
        command = import_module(f"lightning_rebasin.cli.{name}")
        lines.append(f"  {name:<9} {command.HELP}")
    return "\n".join(
        [
            *lines,
            "",
            "lightning-rebasin COMMAND --help explains a command's options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
