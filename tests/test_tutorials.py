"""The tutorials do what they say when somebody types them in, one after the other in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: In the order in which a reader meets them: later ones use files of earlier ones.
PAGES = (
    "first_barrier.md",
    "merge_two_checkpoints.md",
    "two_halves.md",
    "curve.md",
)
BLOCK = re.compile(
    r'^```(?P<language>python|bash)(?: title="(?P<file>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


def blocks(page: str) -> list[tuple[str, str]]:
    """``(file or program, text)`` of every block; Python blocks that follow each other are one session."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.finditer(page):
        kind = block["file"] or block["language"]
        if found and kind == "python" == found[-1][0]:
            found[-1] = (kind, found[-1][1] + block["text"])
        else:
            found.append((kind, block["text"]))
    return found


def type_in(kind: str, text: str, folder: Path) -> str:
    """Do what a reader does with a block: save it, or run it."""
    if kind not in {"python", "bash"}:
        (folder / kind).write_text(text)
        return ""
    commands = {
        "python": [sys.executable, "-W", "ignore", "-c", text],
        "bash": ["bash", "-euo", "pipefail", "-c", text],
    }
    own = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PATH": own + os.pathsep + os.environ["PATH"],
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        commands[kind],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> dict[str, str]:
    """What each page prints."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("tutorials")
    outputs = {}
    for name in PAGES:
        page = (ROOT / "docs" / "tutorials" / name).read_text()
        outputs[name] = "".join(
            type_in(kind, text, folder) for kind, text in blocks(page)
        )
    return outputs


def test_every_tutorial_is_tried():
    assert {p.name for p in (ROOT / "docs" / "tutorials").glob("*.md")} == set(
        PAGES
    )


def test_the_first_barrier_goes_away_by_matching(printed):
    naive, matched = (
        float(line.split()[1])
        for line in printed["first_barrier.md"].splitlines()
        if line.startswith(("naive ", "matched "))
    )
    assert naive > 0.5
    assert matched < 0.1 * naive


def test_the_merged_file_is_as_good_as_the_ends(printed):
    found = dict(
        re.findall(
            r"^(\w+)\.ckpt .*'val_accuracy': ([\d.]+)",
            printed["merge_two_checkpoints.md"],
            re.MULTILINE,
        )
    )
    first, second = float(found["first"]), float(found["second"])
    assert float(found["merged"]) > min(first, second) - 0.02


def test_two_halves_become_one(printed):
    scores = {
        name: float(value)
        for name, value in re.findall(
            r"'(\w+)\.ckpt': ([\d.]+)", printed["two_halves.md"]
        )
    }
    assert max(scores["low"], scores["high"]) < 0.55
    assert scores["both"] > 0.8


def test_the_curve_is_lower_than_the_line(printed):
    line, curve = (
        max(map(float, re.findall(r"\d+\.\d+", text)))
        for text in re.findall(
            r"^(?:straight line|curve) +(.*)$",
            printed["curve.md"],
            re.MULTILINE,
        )
    )
    assert curve < line / 2
