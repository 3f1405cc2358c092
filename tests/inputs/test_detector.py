"""The detector sees the barrier between an input and the references of its class."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import BatchNormCNN, mlp
from helpers.untouched import untouched
from helpers.ways import Islands, detector
from torch import nn

from lightning_rebasin import BarrierDetector, input_barrier
from lightning_rebasin.errors import ConfigurationError, DataError


def test_the_score_is_the_highest_loss_on_the_way():
    own = detector(points=11)
    inputs = torch.tensor([[1.1], [-1.0], [0.05]])
    curves = own.curves(Islands(), inputs)
    assert curves.shape == (3, len(own.lambdas))
    # From 1 to −1 the way goes through 0: the loss of class 0 there is log(1 + e⁶).
    assert float(curves[1].max()) == pytest.approx(math.log1p(math.exp(6)))
    # At the ends of the way to 1.1 the loss is that of the formula.
    for column, x in ((0, 1.0), (-1, 1.1)):
        loss = math.log1p(math.exp(8 * (x * x - 1) ** 2 - 2))
        assert float(curves[0, column]) == pytest.approx(loss, rel=1e-5)
    assert torch.equal(own.scores(Islands(), inputs), curves.amax(1))


def test_the_curve_is_the_mean_over_the_references_of_the_class():
    torch.manual_seed(0)
    module = mlp(4, 16, 3)
    references, inputs = torch.randn(9, 4), torch.randn(5, 4)
    classes = torch.tensor([0, 1, 2] * 3)
    own = BarrierDetector(references, classes, points=5)
    curves = own.curves(module, inputs)
    with torch.no_grad():
        given = module(inputs).argmax(1)
    for i, label in enumerate(given.tolist()):
        rows = []
        for reference in references[classes == label]:
            (path,) = input_barrier(
                module, reference[None], inputs[i : i + 1], label, points=5
            )
            rows.append(path.losses)
        assert np.allclose(curves[i], np.mean(rows, 0), rtol=1e-5)


def test_chunks_change_nothing():
    torch.manual_seed(0)
    module = BatchNormCNN()
    references, inputs = torch.rand(2, 10, 3, 8, 8)
    classes = torch.arange(10) % 5
    found = []
    for size in (3, 500):
        own = BarrierDetector(references, classes, chunk_size=size)
        found.append(own.scores(module, inputs))
    assert torch.allclose(*found, rtol=1e-5)


def test_no_input_has_no_score():
    assert detector().scores(Islands(), torch.zeros(0, 1)).shape == (0,)


def curves(seed, count=60):
    """Curves where only the third λ tells, against the others."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(count, 5, generator=generator)
    attacked = torch.rand(count, 5, generator=generator)
    real[:, 2] += 2.0
    real[:, 4] += 9.0
    attacked[:, 4] += 9.0
    return real, attacked


def test_the_fitted_detector_reads_the_whole_curve():
    own = detector(points=5)
    fitted = own.fitted_to(*curves(0))
    real, attacked = curves(1)
    # The highest loss says nothing here; the dip at the third λ says all.
    assert float(fitted.judge(real).max()) < float(
        fitted.judge(attacked).min()
    )
    assert float(own.judge(real).max()) > float(own.judge(attacked).min())


def test_the_regression_is_that_of_an_optimiser():
    real, attacked = curves(0, 30)
    weights = detector(points=5).fitted_to(real, attacked[:10]).weights
    features = (torch.cat([real, attacked[:10]]).double() + 1e-6).log()
    truth = torch.tensor([0.0] * 30 + [1.0] * 10).double()
    importance = torch.where(truth > 0, 0.5 / 10, 0.5 / 30)
    scale = features.std(0)
    free = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimiser.zero_grad()
        logits = features @ free[:-1] + free[-1]
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits, truth, weight=importance, reduction="sum"
        )
        loss = loss + 0.5e-2 * (free[:-1] * scale).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.allclose(weights, free.detach(), atol=1e-4)


def test_fitting_on_inputs_measures_their_curves():
    torch.manual_seed(0)
    real = 1 + 0.1 * torch.randn(30, 1)
    attacked = -1 + 0.1 * torch.randn(30, 1)
    own = detector(points=9)
    fitted = own.fitted(Islands(), real, attacked)
    again = own.fitted_to(
        own.curves(Islands(), real), own.curves(Islands(), attacked)
    )
    assert torch.equal(fitted.weights, again.weights)
    scores = fitted.scores(Islands(), torch.tensor([[1.05], [-1.05]]))
    assert scores[0] < 0 < scores[1]
    assert "fitted" in repr(fitted)


def test_the_module_and_the_generators_are_untouched():
    module = nn.Sequential(BatchNormCNN(), nn.Dropout(0.5))
    references = torch.zeros(5, 3, 8, 8)
    own = BarrierDetector(references, torch.arange(5), points=3)
    inputs = torch.ones(2, 3, 8, 8)
    with untouched(module):
        own.scores(module, inputs)


def test_wrong_input_is_refused():
    with pytest.raises(DataError, match="no reference of it"):
        BarrierDetector(torch.ones(1, 1), torch.tensor([0])).scores(
            Islands(), torch.zeros(1, 1)
        )
    with pytest.raises(DataError, match="one class, an integer"):
        BarrierDetector(torch.ones(2, 1), torch.tensor([0]))
    with pytest.raises(DataError, match="one class, an integer"):
        BarrierDetector(torch.ones(1, 1), torch.tensor([0.0]))
    with pytest.raises(ConfigurationError, match="points=1"):
        detector(points=1)
    with pytest.raises(ConfigurationError, match="chunk_size=0"):
        detector(chunk_size=0)
    with pytest.raises(DataError, match="one shape"):
        detector().scores(mlp(3, 2), torch.ones(2, 3))
    with pytest.raises(DataError, match="samples along the first axis"):
        detector().scores(Islands(), torch.ones(2))
    with pytest.raises(ConfigurationError, match="needs a classifier"):
        detector().scores(nn.Conv1d(1, 2, 1), torch.ones(2, 1, 1))
    with pytest.raises(DataError, match="got 0 and 2"):
        detector().fitted(Islands(), torch.ones(2, 1), torch.ones(0, 1))
