"""The worked example of "How to write a rule" is run as it stands, and fails when its rule is wrong."""

import doctest
import io

import pytest

from lightning_rebasin.symmetry.permutations import rules

NAME = "rebasin_example.smooth"
TEXT = rules.__doc__ or ""


def run(text: str) -> tuple[doctest.TestResults, str]:
    """Run the code of a docstring; returns how many examples there were and failed, and the report."""
    example = doctest.DocTestParser().get_doctest(
        text, {}, "how to write a rule", None, None
    )
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    return runner.run(example, out=report.write), report.getvalue()


def test_the_worked_example_does_what_it_says():
    results, report = run(TEXT)
    assert results.failed == 0, report
    assert results.attempted > 20


def test_the_example_leaves_no_rule_behind():
    run(TEXT)
    assert NAME not in rules.RULES


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('ctx.join([(x, "tu"), (gain, "u")], "tu")', "x"),
        ('[(x, "tu"), (gain, "u")], "tu"', '[(x, "tu"), (gain, "t")], "tu"'),
        ("ctx.pin(x, [0],", "ctx.pin(x, [0, 1],"),
    ],
)
def test_a_wrong_rule_in_the_example_is_seen(right, wrong):
    assert right in TEXT
    results, _ = run(TEXT.replace(right, wrong))
    assert results.failed > 0
    assert NAME not in rules.RULES
