"""The house stays easy to live in: complexity, density, comments and mirrored tests are held to bounds."""

import ast

import house
import pytest

ROOMS = house.measure()
#: Comment lines per 100 lines of code.
EXPLAINED = {
    "symmetry/permutations": 4.0,
    "symmetry/permutations/rules": 4.0,
    "symmetry/trace": 4.0,
    "matching/costs": 4.0,
}


def test_few_functions_are_complex_and_none_is_very():
    whole = ROOMS["all"]
    assert whole.worst.complexity <= 15, (
        f"{whole.worst.where}: {whole.worst.name}"
    )
    assert whole.complex_share <= 0.035


@pytest.mark.parametrize("name", [name for name in ROOMS if name != "all"])
def test_a_line_holds_one_thought(name):
    assert ROOMS[name].nodes_per_line <= 4.5


@pytest.mark.parametrize("name", EXPLAINED)
def test_the_hard_rooms_say_why(name):
    assert ROOMS[name].comments_per_hundred >= EXPLAINED[name]


def test_modules_have_a_mirrored_test():
    """Whoever looks for the tests of a module finds them by its name."""
    have, able = ROOMS["all"].mirrored
    missing = [str(f.path) for f in ROOMS["all"].files if f.mirrored is False]
    assert have >= 0.85 * able, missing


def test_complexity_counts_branches_comprehensions_and_boolean_operators():
    source = "def f(x):\n    if x and x > 1 or x < 0:\n        return [y for y in x if y]\n    return None\n"
    # one, the if, two boolean operators, one comprehension with one condition
    assert house.complexity(ast.parse(source).body[0]) == 6


def test_a_docstring_is_neither_code_nor_comment(tmp_path):
    package = tmp_path / house.PACKAGE
    package.mkdir()
    (package / "x.py").write_text(
        '"""Text.\n\nMore.\n"""\n\n# why\nA = 1 + 2\n'
    )
    size = house.measure_file(package / "x.py", tmp_path)
    assert (
        size.code_lines,
        size.comment_lines,
        size.nodes,
        size.mirrored,
    ) == (
        1,
        1,
        4,
        False,
    )
