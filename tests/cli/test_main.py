"""The frame around every command: help without waiting, one line for each mistake, clean exit codes."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import MODULE, Files, half_written, one_line, run

from lightning_rebasin import __version__
from lightning_rebasin.cli import landscape, spec
from lightning_rebasin.cli.main import COMMANDS, main
from lightning_rebasin.errors import DataError, RebasinWarning

Capture = pytest.CaptureFixture[str]
#: Commands with options of their own, those of groups by both names, and the groups.
GROUPS = {"landscape": landscape.COMMANDS}
SINGLE = [
    *(name for name in COMMANDS if name not in GROUPS),
    *(f"{group} {name}" for group in GROUPS for name in GROUPS[group]),
]


@pytest.mark.parametrize("command", SINGLE)
def test_help_of_each_command(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: lightning-rebasin {command}")
    assert len(out) > 500


def test_overview_and_version(capsys: Capture) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
    assert run() == 2
    assert run("--version") == 0


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_lists_its_commands(group: str, capsys: Capture) -> None:
    assert run(group, "--help") == 0
    out = capsys.readouterr().out
    assert f"usage: lightning-rebasin {group} COMMAND" in out
    assert all(f"  {command} " in out for command in GROUPS[group])
    assert run(group) == 2
    capsys.readouterr()
    assert run(group, "bogus") == 2
    line = one_line(capsys)
    assert line.startswith(f"lightning-rebasin {group}: error: there is no")
    assert GROUPS[group][0] in line


AVERAGE = "merge a.ckpt b.ckpt -o x.ckpt --method average"
BAD = {
    "no such command": ("bogus", "there is no command 'bogus'"),
    "no output": ("merge a.ckpt b.ckpt", "-o/--output"),
    "unknown option": ("merge a.ckpt b.ckpt -o x.ckpt --bogus", "--bogus"),
    "bad choice": (
        "merge a.ckpt b.ckpt -o x.ckpt --method magic",
        "'weight', 'activation'",
    ),
    "one file": ("merge a.ckpt -o x.ckpt --method average", "two or more"),
    "missing file": (
        "merge a.ckpt no.ckpt -o x.ckpt --method average",
        "no.ckpt",
    ),
    "not a checkpoint": (
        "merge a.ckpt text.txt -o x.ckpt --method average",
        "text.txt",
    ),
    "no network": ("merge a.ckpt b.ckpt -o x.ckpt", "--module or --config"),
    "bad module": (
        "merge a.ckpt b.ckpt -o x.ckpt --module no.such.Net",
        "no.such.Net",
    ),
    "bad data": (
        f"merge a.ckpt b.ckpt -o x.ckpt --module {MODULE} --data os.bogus",
        "os.bogus",
    ),
    "bad arguments": (
        f"match a.ckpt b.ckpt -o x.p --module {MODULE} --init-args {{",
        "--init-args",
    ),
    "wrong width": (
        f"match a.ckpt b.ckpt -o x.p --module {MODULE} --init-args '{{\"hidden\":7}}'",
        "shape",
    ),
    "missing folder": (
        "merge a.ckpt b.ckpt -o no/x.ckpt --method average",
        "folder no",
    ),
    "wrong weights": (f"{AVERAGE} --share 1", "1 weights"),
    "live weights": (f"{AVERAGE} --weights current", "Averaging"),
    "bad prefix": (f"{AVERAGE} --prefix zz.", "zz."),
    "not a permutation": ("apply a.ckpt b.ckpt -o x.ckpt", "permutation"),
    "barrier without data": (
        f"barrier a.ckpt b.ckpt --module {MODULE}",
        "--data",
    ),
    "activation without data": (
        f"merge a.ckpt b.ckpt -o x.ckpt --module {MODULE} --method activation",
        "--data",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line_and_leave_nothing(
    files: Files, tmp_path: Path, case: str, capsys: Capture
) -> None:
    (tmp_path / "text.txt").write_text("hello")
    before = {p.name for p in tmp_path.iterdir()}
    command, message = BAD[case]
    code: object
    try:
        code = run(command)
    except SystemExit as leave:
        code = leave.code
    assert code == 2
    line = one_line(capsys)
    assert "error: " in line
    assert message in line
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == before


def test_errors_are_one_line_with_code_two(capsys: Capture) -> None:
    assert run("spec --module helpers.towers.Tower --input-shape 2,99") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(
        "lightning-rebasin spec: error: Tower does not run on the example input"
    )


def test_interrupted_while_writing_leaves_nothing(
    files: Files, tmp_path: Path
) -> None:
    before = {p.name for p in tmp_path.iterdir()}
    process = half_written(
        tmp_path, "merge a.ckpt b.ckpt -o out.ckpt --method average"
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in err
    assert {p.name for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        *([*command.split(), "--help"] for command in (*GROUPS, *SINGLE)),
    ],
    ids=" ".join,
)
def test_help_does_not_wait_for_heavy_libraries(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom lightning_rebasin.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit(', '.join({'torch', 'lightning', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "usage: lightning-rebasin" in result.stdout
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_is_that_of_the_package(
    option: str, capsys: Capture
) -> None:
    assert run(option) == 0
    assert capsys.readouterr().out == f"lightning-rebasin {__version__}\n"


def test_the_arguments_of_the_process_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-rebasin", "bogus"])
    assert main() == 2
    assert "no command 'bogus'" in capsys.readouterr().err


@pytest.fixture
def spec_does(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[], int]], int]:
    """Run ``lightning-rebasin spec`` with another body."""

    def run_body(body: Callable[[], int]) -> int:
        def replaced(args: argparse.Namespace) -> int:
            return body()

        monkeypatch.setattr(spec, "run", replaced)
        return run("spec")

    return run_body


SpecDoes = Callable[[Callable[[], int]], int]


def test_the_code_of_the_command_is_returned(spec_does: SpecDoes) -> None:
    assert spec_does(lambda: 7) == 7


def test_a_message_of_several_lines_becomes_one(
    spec_does: SpecDoes, capsys: Capture
) -> None:
    def fail() -> int:
        raise DataError("first\n   second\tthird")

    assert spec_does(fail) == 2
    err = capsys.readouterr().err
    assert err == "lightning-rebasin spec: error: first second third\n"


def test_an_error_of_the_package_itself_is_not_hidden(
    spec_does: SpecDoes,
) -> None:
    def fail() -> int:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        spec_does(fail)


def test_an_interrupt_has_its_own_code(
    spec_does: SpecDoes, capsys: Capture
) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert spec_does(interrupt) == 130
    assert capsys.readouterr().err == (
        "lightning-rebasin spec: interrupted; nothing was left half-written\n"
    )


def test_only_our_own_warnings_are_shown(
    spec_does: SpecDoes, capsys: Capture
) -> None:
    def warn() -> int:
        warnings.simplefilter("always")
        warnings.warn("ours,\n of two lines", RebasinWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
        return 0

    shown = warnings.showwarning
    assert spec_does(warn) == 0
    assert capsys.readouterr().err == "warning: ours, of two lines\n"
    assert warnings.showwarning is shown
