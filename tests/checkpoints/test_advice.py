"""What is advised, by the options that it names; the sentences themselves may change."""

import math

import pytest
from helpers.reports import match, matched, report

from lightning_rebasin.checkpoints.advice import advise
from lightning_rebasin.checkpoints.report import MergeReport, Trial


def text(of: MergeReport) -> str:
    return "\n".join(advise(of))


def losses(**rows: float) -> dict[str, dict[str, float]]:
    """An evaluation whose rows are called as the report calls them."""
    named = {"naive": "naive average", "a": "a.pt", "b": "b.pt"}
    return {
        named.get(row, row): {"accuracy": 0.5, "val_loss": loss}
        for row, loss in rows.items()
    }


def test_averaging_strangers_is_advised_against() -> None:
    said = text(report(cosines=((0.02, 0.02),)))
    assert "b.pt" in said and "0.02" in said
    assert "--method weight" in said
    assert "--method" not in text(report(cosines=((0.999, 0.999),)))


def test_matching_what_is_aligned_already_is_advised_against() -> None:
    assert "--method average" in text(matched(0.999, 0.999))
    assert "--method average" not in text(matched(0.02, 0.9))
    # The matching itself may know better than the cosine.
    assert "--method average" in text(matched(0.02, 0.02, same_basin=True))


def test_each_file_is_judged_by_its_own_cosine() -> None:
    three = report("a.pt", "b.pt", "c.pt", cosines=((0.999, 1.0), (0.01, 0)))
    first = advise(three)[0]
    assert "c.pt" in first and "b.pt" not in text(three)


def test_what_was_measured_silences_what_the_cosine_suggests() -> None:
    trial = Trial("average", {"naive": 0.1})
    strangers = ((0.02, 0.02),)
    said = text(report(cosines=strangers, trials=(trial,)))
    assert "--method weight" not in said
    measured = losses(a=1, b=1, merged=1)
    said = text(report(cosines=strangers, evaluation=measured))
    assert "--method weight" not in said


def test_the_share_of_moved_units_counts_units_not_groups() -> None:
    """All 4 units of one group moved and none of the 6 of the other: 40 %."""
    said = text(matched(0.02, 0.9))
    assert "0.02" in said and "0.90" in said
    assert "40%" in said


def test_a_low_cosine_after_matching_warns_of_a_barrier() -> None:
    assert "barrier" in text(matched(0.02, 0.05))
    assert "barrier" not in text(matched(0.02, 0.97))


@pytest.mark.parametrize(
    ("method", "statistics", "said"),
    [
        ("average", "none", True),
        ("average", "reset", False),
        ("average", "repair", False),
        ("none", "none", False),
    ],
)
def test_averaged_batch_norms_are_pointed_out(
    method: str, statistics: str, said: bool
) -> None:
    found = report(method=method, statistics=statistics, batch_norms=7)
    assert ("7 batch norms" in text(found)) == said
    assert "batch norms" not in text(report(batch_norms=0))


def test_without_any_measurement_one_is_asked_for() -> None:
    assert "evaluate" in text(report())
    assert text(report("a.pt", method="none", cosines=())) == ""


def test_metrics_that_are_no_loss_say_nothing() -> None:
    rows = {"a.pt": {"accuracy": 0.9}, "merged": {"accuracy": 0.1}}
    assert text(report(evaluation=rows)) == ""


def test_the_best_single_model_has_the_lowest_loss() -> None:
    said = text(report(evaluation=losses(a=2, b=1, naive=0.5, merged=1.4)))
    assert "best single model is b.pt" in said
    assert "better than every single one" not in said
    said = text(report(evaluation=losses(a=2, b=1, merged=0.9)))
    assert "better than every single one" in said


def test_a_barrier_is_the_height_above_the_mean_of_the_ends() -> None:
    """(2 + 4) / 2 = 3, so that 7 is 4 too high; the naive average and the ensemble are no ends."""
    rows = losses(a=2, b=4, naive=100, ensemble=100, merged=7)
    said = text(report(evaluation=rows))
    assert "barrier of 4 " in said
    assert "barrier" not in text(report(evaluation=losses(a=2, b=4, merged=3)))


def test_a_barrier_calls_for_what_was_not_tried_yet() -> None:
    rows = losses(a=1, b=1, naive=5, merged=9)
    assert "--data" in text(report(evaluation=rows))
    tried = (Trial("average", {"naive": 9, "refit": 9.5}),)
    settings = {"trials": tried, "statistics": "refit"}
    worse = text(report(evaluation=rows, **settings))
    assert "naive average is better" in worse and "--data" not in worse
    rows = losses(a=1, b=1, naive=12, merged=9)
    assert "naive average is better" not in text(
        report(evaluation=rows, **settings)
    )


def test_the_winner_of_a_comparison_is_named_with_its_score() -> None:
    trials = (
        Trial("average", {"naive": 0.9, "repair": 0.8}),
        Trial("weight", {"naive": 0.3, "repair": 0.125, "refit": 0.2}),
    )
    won = matched(
        0.02, 0.9, trials=trials, criterion="loss", statistics="repair"
    )
    said = text(won)
    assert "5 ways" in said
    assert "loss 0.125" in said


@pytest.mark.parametrize(
    ("criterion", "score", "far"),
    [("distance", 0.97, True), ("distance", 0.03, False), ("loss", 2, False)],
)
def test_outputs_far_from_those_of_the_models_are_pointed_out(
    criterion: str, score: float, far: bool
) -> None:
    trials = (Trial("average", {"naive": score}),)
    said = text(report(trials=trials, criterion=criterion))
    assert ("of the variance" in said) == far


def test_one_lonely_restart_is_no_certainty() -> None:
    def uncertain(*ends: float) -> bool:
        return "--seed" in text(matched(0.02, 0.9, ends=ends))

    assert uncertain(10, 5, 5)
    assert not uncertain(10, 9.99, 5)
    # One descent alone was never meant to agree with another one.
    assert not uncertain(10)


def test_a_matching_that_gained_nothing_is_as_certain_as_it_gets() -> None:
    none_gained = match(0.0, -5.0, objective=0.0)
    found = matched(0.02, 0.02, matches=(none_gained,))
    assert "--seed" not in text(found)


def test_a_permutation_without_proof_is_said_to_be_trusted() -> None:
    assert "--module" in text(matched(0.02, 0.9, errors=()))
    assert "--module" not in text(matched(0.02, 0.9))
    assert "--module" not in text(report())


def test_files_of_one_name_are_told_apart() -> None:
    found = report("run1/best.pt", "run2/best.pt", cosines=((0.02, 0.02),))
    first = advise(found)[0]
    assert "run1/best.pt" in first and "run2/best.pt" in first


def test_the_most_important_comes_first() -> None:
    said = advise(matched(0.999, 0.999, errors=()))
    assert "basin" in said[0]
    assert "--module" in said[-1]


def test_a_loss_that_is_not_a_number_is_not_called_better() -> None:
    said = text(report(evaluation=losses(a=1, b=2, merged=math.nan)))
    assert "nan" in said
    assert "better than every single one" not in said


def test_losses_below_zero_have_barriers_above_the_mean_only() -> None:
    """Log-likelihoods: the ends' mean is −1.1."""
    good = text(report(evaluation=losses(a=-1.0, b=-1.2, merged=-1.15)))
    assert "barrier" not in good
    bad = text(report(evaluation=losses(a=-1.0, b=-1.2, merged=-0.1)))
    assert "barrier of 1 " in bad


def test_unmeasured_is_said_only_where_no_data_were_given() -> None:
    assert "no data was given" in text(report())
    trial = Trial("weight", {"refit": 0.1})
    said = text(report(method="weight", statistics="refit", trials=(trial,)))
    assert "no data was given" not in said


@pytest.mark.parametrize("merged_loss", [math.nan, math.inf])
def test_a_merged_loss_that_is_no_number_is_said_loudly(
    merged_loss: float,
) -> None:
    said = text(report(evaluation=losses(a=1, b=2, merged=merged_loss)))
    assert "do not use" in said
    assert "better than every single one" not in said


def test_an_end_without_a_number_is_not_the_best() -> None:
    rows = losses(a=math.nan, b=2, merged=1)
    said = text(report(evaluation=rows))
    assert "the best single model is b.pt" in said
    assert "better than every single one" in said


def test_data_of_every_model_are_not_asked_for_twice() -> None:
    trials = (Trial("average", {"naive": 0.1}),)
    one = text(report(trials=trials, data=("digits",)))
    assert "give --data once per model" in one
    two = text(report(trials=trials, data=("low", "high")))
    assert "the data came from low and high" in two
    assert "give --data" not in two
