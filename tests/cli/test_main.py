"""The frame around every command: help without waiting, one line for each mistake, clean exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import MODULE, Files, half_written, one_line, run

from lightning_rebasin.cli.main import COMMANDS

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", COMMANDS)
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
    [[], ["--help"], *([command, "--help"] for command in COMMANDS)],
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
