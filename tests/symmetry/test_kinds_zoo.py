"""Common architectures with all kinds: what is inferred is what a person reads, nothing wrong, nothing less.

The whole zoo: ``tests/symmetry/kinds_zoo_table.py``; its result is kept in ``docs/zoo_kinds.md``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from helpers import zoo
from helpers.kinds_expected import EXPECTED, Expected
from helpers.kinds_zoo import KindsRow, examine, failure_of, kinds_along

from lightning_rebasin.symmetry import PermutationSpec

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"tv": "torchvision", "timm": "timm", "hf": "transformers"}


#: Seconds of which there are several, on an idle core.
SLOW = {
    "tv/resnet50",
    "tv/densenet121",
    "tv/mobilenet_v2",
    "hf/t5_gated",
    "hf/whisper",
    "hf/mixtral",
    "hf/mamba",
    "hf/gemma2",
    "hf/falcon",
    "hf/bloom",
}


def cases() -> list[Any]:
    """All names, slow ones marked."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in EXPECTED
    ]


def missing(name: str) -> str:
    """Why an architecture cannot be built here; empty if it can."""
    package = PACKAGES.get(name.partition("/")[0])
    if not zoo.ZOO_FOLDER.exists():
        return "needs the shared zoo (set REBASIN_SHARED)"
    if package and importlib.util.find_spec(package) is None:
        return f"needs {package}"
    return ""


def untied_stream(spec: PermutationSpec, expected: Expected) -> str:
    """What the stream would be in the untied network; empty if untying changes nothing."""
    if spec.untied is None or expected.stream is None:
        return ""
    return kinds_along(spec.untied, expected.stream[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", cases())
def test_what_is_inferred_is_what_a_person_reads(name: str) -> None:
    if why := missing(name):
        pytest.skip(why)
    expected = EXPECTED[name]
    row, spec = examine(name)
    assert not row.failure
    found = {axis: kinds_along(spec, axis) for axis in expected.axes}
    found["untied"] = untied_stream(spec, expected)
    read = {**expected.axes, "untied": expected.untied}
    assert found == {**read, **expected.found}


def test_thirty_architectures_are_read() -> None:
    assert len(EXPECTED) >= 30


def test_the_table_of_the_docs_is_this_one() -> None:
    page = (ROOT / "docs/symmetry.md").read_text()
    for name, expected in EXPECTED.items():
        assert line(name, expected) in page, name


def test_faults_are_seen() -> None:
    right = KindsRow("a", error=1e-12, gauge=1e-12)
    assert failure_of(right) == ""
    nothing = KindsRow("a")
    assert "change the function" in failure_of(nothing)
    less = KindsRow("a", error=0.0, gauge=1e-3, smaller=("w[0]: 2 of 3",))
    assert "gauge" in failure_of(less)
    assert "w[0]: 2 of 3" in failure_of(less)


def line(name: str, expected: Expected) -> str:
    """One row of the table in ``docs/symmetry.md``."""
    cells = []
    for axis in (
        expected.stream,
        expected.queries,
        expected.values,
        expected.hidden,
    ):
        cell = "–"
        if axis is not None:
            place, kind = axis
            less = expected.found.get(place)
            cell = kind if less is None else f"{kind} (found: {less})"
        cells.append(cell)
    if expected.untied:
        less = expected.found.get("untied")
        missed = ", not found" if less == "" else ""
        cells[0] += f"; untied: {expected.untied}{missed}"
    return "| " + " | ".join((name, *cells, expected.why)) + " |"
