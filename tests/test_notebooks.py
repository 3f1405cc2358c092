"""The notebooks run from top to bottom in a fresh kernel, and show what their text promises."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"


def printed(name: str) -> str:
    """Everything that a notebook prints."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), (
        "notebooks are kept without outputs"
    )
    with warnings.catch_warnings():
        # Kernels and their clients warn of what they will change in versions to come.
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(
            notebook,
            timeout=300,
            resources={"metadata": {"path": str(NOTEBOOKS)}},
        ).execute()
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def test_symmetries_of_your_network():
    text = printed("symmetries_of_your_network")
    assert "0.weight" in text
    assert re.search(r"10\^\d+ symmetries", text)


def test_merge_two_trainings():
    text = printed("merge_two_trainings")
    naive, matched = map(
        float, re.findall(r"naive ([\d.]+), matched ([\d.]+)", text)[0]
    )
    assert matched < naive / 4
    scores = dict(
        re.findall(r"^(first|second|merged) +([\d.]+)%", text, re.MULTILINE)
    )
    assert (
        float(scores["merged"])
        > min(float(scores["first"]), float(scores["second"])) - 3
    )


def test_landscape_between_solutions():
    text = printed("landscape_between_solutions")
    heights = dict(
        re.findall(r"^(naive|matched) +barrier ([\d.]+)", text, re.MULTILINE)
    )
    assert float(heights["matched"]) < float(heights["naive"]) / 2


def test_every_notebook_is_tried():
    tried = set(re.findall(r'printed\("(\w+)"\)', Path(__file__).read_text()))
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == tried
