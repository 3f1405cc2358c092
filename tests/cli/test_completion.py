"""The completion script, in the shell that reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import one_line, run

from lightning_rebasin.cli.completion import SHELLS, whole_parser
from lightning_rebasin.cli.main import COMMANDS

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def script(tmp_path: Path, capsys: Capture) -> Path:
    """What is printed for bash, in a file."""
    pytest.importorskip("shtab")
    assert run("completion bash") == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out)
    return path


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word.

    Example:
        ``completed(script, "mer")`` asks what follows ``lightning-rebasin mer<TAB>``.
    """
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    typed = " ".join(f"'{word}'" for word in ("lightning-rebasin", *words))
    program = f"""
        source '{script}'
        COMP_WORDS=({typed}); COMP_CWORD={len(words)}
        function=$(complete -p lightning-rebasin | sed -E 's/.*-F ([^ ]+).*/\\1/')
        $function
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [bash, "-c", program], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("mer",), ["merge"]),
        (("landscape", "cu"), ["curve"]),
        (("barrier", "--poi"), ["--points"]),
        (("merge", "--statistics", "ref"), ["refit"]),
        (("landscape", "curve", "--ben"), ["--bends"]),
    ],
)
def test_bash_completes(
    script: Path, words: tuple[str, ...], offered: list[str]
) -> None:
    assert completed(script, *words) == offered


def test_bash_completes_files(script: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "first.ckpt"
    checkpoint.touch()
    assert completed(script, "apply", f"{tmp_path}/fir") == [str(checkpoint)]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_command(shell: str, capsys: Capture) -> None:
    pytest.importorskip("shtab")
    assert run("completion", shell) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_without_shtab_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run("completion bash") == 2
    assert "pip install 'lightning-rebasin[cli]'" in one_line(capsys)


def test_the_whole_parser_reads_what_is_typed() -> None:
    args = whole_parser().parse_args(
        ["landscape", "curve", "a", "b", "-o", "out"]
    )
    assert args.bends == 1
