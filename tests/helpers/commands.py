"""The commands as a person uses them: arguments as on one line of a shell, and what they print."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from torch import Tensor

from lightning_rebasin.cli import spec
from lightning_rebasin.cli.main import main
from lightning_rebasin.errors import RebasinError

MODULE = "helpers.classifier.Classifier"


class Files(NamedTuple):
    """What the fixture ``files`` put into the working folder: the state of a.ckpt, and a module with loaders."""

    state: dict[str, Tensor]
    loaders: str


def words(*parts: object) -> list[str]:
    """Arguments as a shell would split them."""
    return [word for part in parts for word in shlex.split(str(part))]


def run(*parts: object) -> int:
    """The exit code of ``lightning-rebasin ...``."""
    return main(words(*parts))


def run_spec(*parts: object) -> int:
    """The ``spec`` command without the net that catches its errors."""
    parser = argparse.ArgumentParser()
    spec.add_arguments(parser)
    return spec.run(parser.parse_args(words(*parts)))


def assert_spec_refuses(
    folder: Path, arguments: str, error: type[RebasinError], message: str
) -> None:
    """The ``spec`` command, run in an empty folder, raises and leaves nothing behind."""
    with pytest.raises(error, match=message):
        run_spec(arguments, f"--output {folder}/spec.json")
    assert list(folder.iterdir()) == []


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr, progress bars apart."""
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line and "it/s]" not in line and "%|" not in line
    ]
    assert len(lines) == 1, lines
    return lines[0]


# A shell starts background jobs with SIGINT ignored, and their children inherit that: the default handler comes first.
_SLOW_SAVE = """
import signal, sys, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)
from lightning_rebasin.checkpoints import write
from lightning_rebasin.cli.main import main
from lightning_rebasin.errors import RebasinError
save = torch.save
def slow(payload, file):
    save(payload, file)
    file.truncate(100)
    print("half", flush=True)
    time.sleep(60)
write.torch.save = slow
sys.exit(main(sys.argv[1:]))
"""


def half_written(folder: Path, command: str) -> subprocess.Popen[str]:
    """The command as a program of its own that hangs after it wrote half of its checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_SAVE, *words(command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process
