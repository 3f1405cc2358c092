"""How t is drawn."""

import numpy as np
import pytest
from scipy import stats

from lightning_rebasin.modules.path_options import PathOptions


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({}, stats.uniform()),
        ({"t": "beta"}, stats.beta(2, 2)),
        ({"t": "beta", "beta": (1.0, 3.0)}, stats.beta(1, 3)),
    ],
)
def test_t_has_its_distribution(options, law):
    drawing = PathOptions(**options)
    ts = [drawing.draw_t(drawing.generator(s, 0)) for s in range(2000)]
    assert stats.kstest(ts, law.cdf).pvalue > 0.01
    assert stats.kstest(ts, stats.beta(2, 5).cdf).pvalue < 1e-6


def test_a_fixed_t_is_that():
    drawing = PathOptions(t=0.3)
    assert {drawing.draw_t(drawing.generator(s, s)) for s in range(5)} == {0.3}


def test_steps_batches_and_seeds_draw_their_own():
    drawings = [PathOptions(seed=seed) for seed in (0, 1)]
    places = [(0, 0), (0, 1), (1, 0)]
    ts = [d.draw_t(d.generator(*place)) for d in drawings for place in places]
    assert len(set(ts)) == 6
    np.testing.assert_allclose(
        PathOptions(val_points=3).val_grid, (0.0, 0.5, 1.0)
    )
