import json
import math
from pathlib import Path

import pytest
from helpers.reports import matched, report

from lightning_rebasin.checkpoints.report import Trial, shortest_names
from lightning_rebasin.matching import ManyMatchResult


def lines(of: object) -> list[str]:
    return str(of).splitlines()


def test_a_report_is_plain_json_and_says_the_same() -> None:
    trial = Trial("weight", {"naive": 0.5})
    found = matched(
        0.1,
        0.9,
        evaluation={"a.pt": {"loss": 0.5}},
        variances=(0.5, 1.0),
        dropped=("callbacks",),
        trials=(trial,),
        data=("mnist",),
        advice=("do this",),
    )
    back = json.loads(json.dumps(found.to_dict()))
    assert back["inputs"][1] == {
        "path": "b.pt",
        "sha256": "abc",
        "format": "torch",
        "weight": 0.5,
        "filled": [],
    }
    assert back["output"] == "out.pt"
    assert back["cosines"] == [[0.1, 0.9]]
    assert back["equivalence_errors"] == [1e-15]
    assert back["evaluation"] == {"a.pt": {"loss": 0.5}}
    assert back["variance_ratio"] == [0.5, 1.0]
    assert back["dropped"] == ["callbacks"]
    assert back["trials"] == [{"method": "weight", "scores": {"naive": 0.5}}]
    assert back["data"] == ["mnist"]
    assert back["advice"] == ["do this"]
    assert back["matches"][0]["objective"] == 10


def test_the_symmetries_are_counted_by_their_factorials() -> None:
    """Groups of 4 and 6 units: 4! · 6! orders."""
    found = matched(0.1, 0.9).to_dict()["log10_symmetries"]
    assert found == pytest.approx(math.log10(24 * 720))


def test_what_was_not_done_is_null() -> None:
    back = report(output=None).to_dict()
    for name in ("output", "many", "variance_ratio", "log10_symmetries"):
        assert back[name] is None
    assert back["matches"] == []


def test_models_are_matched_one_by_one_or_all_at_once() -> None:
    many = ManyMatchResult((), (), (0.0, 1.0), {}, 0.0, "merge_many", 0.1)
    assert not report().matched
    assert matched(0.1, 0.9).matched
    assert report(many=many).matched
    assert report(many=many).to_dict()["many"]["objectives"] == [0, 1]


def test_the_head_says_what_was_merged_and_how_it_ended() -> None:
    said = lines(report())
    assert said[0] == "2 models, method average, statistics none, 1.2 s"
    assert said[1:3] == ["  0.5 × a.pt (torch)", "  0.5 × b.pt (torch)"]
    assert said[-1] == "wrote out.pt"
    alone = lines(report("a.pt", cosines=(), output=None))
    assert alone[0].startswith("1 model,")
    assert alone[-1] == "nothing was written (dry run)"


def test_the_cosine_after_matching_is_shown_where_there_was_one() -> None:
    plain = report(cosines=((0.25, 0.25),))
    assert "cosine of b.pt to a.pt: 0.250" in lines(plain)
    found = matched(0.25, 0.5)
    assert "cosine of b.pt to a.pt: 0.250, matched 0.500" in lines(found)


def test_the_largest_error_counts() -> None:
    said = str(matched(0.1, 0.9, errors=(1e-15, 3e-9, 1e-12)))
    assert "same function: relative error 3e-09" in said
    assert "same function" not in str(report())


def test_what_was_dropped_and_advised_has_a_line_each() -> None:
    said = lines(report(dropped=("hyper_parameters.loss",), advice=("do",)))
    assert said[-3:] == ["dropped: hyper_parameters.loss", "- do", said[-1]]


def test_a_table_has_a_column_for_every_metric_and_marks_the_gaps() -> None:
    rows = {"a.pt": {"loss": 0.5}, "naive average": {"loss": 1, "acc": 0.25}}
    said = lines(report(evaluation=rows))
    table = said[-4:-1]
    assert [row.split() for row in table] == [
        ["loss", "acc"],
        ["a.pt", "0.5000", "–"],
        ["naive", "average", "1.0000", "0.2500"],
    ]
    assert len({len(row) for row in table}) == 1


@pytest.mark.parametrize(
    ("criterion", "said"),
    [("distance", "held-out distance"), ("loss", "held-out loss")],
)
def test_trials_say_what_was_compared(criterion: str, said: str) -> None:
    trials = (Trial("average", {"naive": 0.75}), Trial("weight", {}))
    found = lines(report(trials=trials, criterion=criterion))
    start = [line.startswith(said) for line in found].index(True)
    table = [row.split() for row in found[start + 1 : start + 4]]
    assert table == [["naive"], ["average", "0.7500"], ["weight", "–"]]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.pt", "y/b.pt"], ["a.pt", "b.pt"]),
        (["x/a.pt", "y/a.pt"], ["x/a.pt", "y/a.pt"]),
        # Two of three names would do with less, but all have the same length.
        (["x/a.pt", "y/a.pt", "y/b.pt"], ["x/a.pt", "y/a.pt", "y/b.pt"]),
        (["p/x/a.pt", "p/y/a.pt"], ["x/a.pt", "y/a.pt"]),
        (["p/x/a.pt", "q/x/a.pt"], ["p/x/a.pt", "q/x/a.pt"]),
        (["a.pt", "x/a.pt"], ["a.pt", "x/a.pt"]),
        # One file merged with itself cannot be told apart.
        (["x/a.pt", "x/a.pt"], ["a.pt", "a.pt"]),
        ([], []),
    ],
)
def test_names_are_as_short_as_they_can_be(
    paths: list[str], names: list[str]
) -> None:
    assert shortest_names([Path(p) for p in paths]) == tuple(names)
