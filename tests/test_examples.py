"""The examples run as they are and print what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.shared import shared_path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / name), *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_infer_symmetries():
    printed = run("infer_symmetries.py")
    assert "less than 1e-8 (relative): True" in printed
    assert "5.weight: parameter (64, 256)" in printed


def test_merge_two_models():
    lines = [
        line for line in run("merge_two_models.py").splitlines() if "%" in line
    ]
    ends, naive, merged = (
        [
            float(word.rstrip("%"))
            for word in line.split()
            if word.endswith("%")
        ]
        for line in lines
    )
    assert min(ends) > 96
    assert naive[0] < min(ends) - 2
    assert merged[0] > max(ends) - 2


def test_infer_kinds():
    lines = run("infer_kinds.py").splitlines()
    assert "| tanh MLP | permutation 1, sign 1 |" in lines
    page = (EXAMPLES.parent / "docs" / "symmetry.md").read_text()
    assert "\n".join(lines) in page


def test_the_setting_of_glmc_runs_dry(tmp_path):
    """Two tiny GPT-2s: every way of matching is measured, from the same ends, and none is worse than none."""
    pytest.importorskip("transformers")
    shared_path("data/shakespeare")
    run("studies/glmc.py", "--smoke", "--output", str(tmp_path))
    rows = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert [row["way"] for row in rows] == [
        "naive",
        "permutations",
        "all kinds, weights",
        "all kinds, activations",
        "learned",
    ]
    naive, *others = rows
    for row in others:
        assert row["first end"] == pytest.approx(naive["first end"], abs=1e-4)
        assert row["second end"] == pytest.approx(
            naive["second end"], abs=1e-4
        )
        assert row["barrier"] <= naive["barrier"] + 1e-4
