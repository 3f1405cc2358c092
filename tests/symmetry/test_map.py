"""The map and the glossary in ``symmetry/__init__.py`` are honest."""

import re
from pathlib import Path

import pytest

from lightning_rebasin import symmetry

MAP = symmetry.__doc__
FOLDER = Path(symmetry.__file__).parent
PACKAGE = FOLDER.parent
ROOMS = sorted(p.parent.name for p in FOLDER.glob("*/__init__.py"))
FILES = sorted(p.name for p in FOLDER.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_line(room):
    assert f"\n- ``{room}/``: " in MAP


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_the_entrance_has_its_line(file):
    assert f"\n- ``{file}``: " in MAP


def test_what_the_map_names_exists():
    named = re.findall(r"``([a-z_/]+/|[a-z_/]+\.py)``", MAP)
    assert len(named) > 15
    for path in named:
        homes = (FOLDER, PACKAGE, FOLDER / "permutations")
        assert any((home / path).exists() for home in homes), path


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_where_what_lies(room):
    docstring = (FOLDER / room / "__init__.py").read_text().split('"""')[1]
    own = {p.name for p in (FOLDER / room).glob("*.py")} - {"__init__.py"}
    for named in re.findall(r"``([a-z_]+\.py)``", docstring):
        assert named in own
    if room in ("spec", "trace", "edit"):
        for name in own:
            assert f"``{name}``" in docstring, name


@pytest.mark.parametrize(
    "word",
    [
        "tape", "value", "node", "element", "element run", "label", "site",
        "part", "pinned", "free", "pending", "defining table", "constraint", "table", "relation",
        "mark", "wish", "refinement", "class", "colour", "cell",
        "group", "instance", "member", "unit", "component", "axis map",
        "alias", "pin", "note", "action", "element of a group", "transform",
        "permutation", "flat order", "spec", "gate", "negative control",
        "sandbox", "activation address", "kind", "contraction", "rule", "join",
    ],
)  # fmt: skip
def test_a_word_is_defined_once(word):
    assert len(re.findall(rf"\*{word}\*", MAP)) == 1
