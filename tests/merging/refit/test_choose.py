import math

import pytest

from lightning_rebasin.merging.refit.choose import best


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"naive": 2.0, "repair": 1.0, "refit": 1.5}, "repair"),
        ({"naive": 2.0, "repair": math.nan, "refit": math.inf}, "naive"),
        ({"naive": 1.0, "refit": 1.0}, "refit"),
        ({"naive": math.nan, "refit": math.nan}, "naive"),
    ],
)
def test_the_lowest_finite_score_wins_and_the_last_of_equals(scores, expected):
    assert best(scores) == expected
