"""The numbers in a report, against the merged network itself."""

from __future__ import annotations

import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch import Tensor, nn

from lightning_rebasin.merging import Refit, refit


def merged(net: nn.Module, x: Tensor) -> Refit[nn.Module]:
    states = []
    for seed in (1, 2):
        state = randomise(net, seed).state_dict()
        states.append({k: v.clone() for k, v in state.items()})
    return refit(net, states, list(x.split(80)))


def data(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator)


def test_the_report_has_layers_samples_and_scores() -> None:
    report = merged(mlp(5, 8, 3), data(160, 5))
    assert [fit.layer for fit in report.layers] == ["0.weight", "2.weight"]
    assert report.samples == (140, 20)
    assert report.criterion == "distance"
    assert set(report.scores) == {"naive", "repair", "refit"}
    assert report.scores[report.method] == min(report.scores.values())
    # the fitted samples for five weights and a bias, then for eight and a bias
    rows = [fit.rows_per_unknown for fit in report.layers]
    assert rows == pytest.approx([140 / 6, 140 / 9])
    assert not any(fit.joins for fit in report.layers)
    assert all(fit.after <= fit.before for fit in report.layers)


def test_absorbed_norms_are_named() -> None:
    report = merged(BatchNormCNN(), data(160, 3, 8, 8))
    found = {fit.layer: fit.absorbed for fit in report.layers}
    assert found == {
        "conv1.weight": "bn1",
        "conv2.weight": "bn2",
        "fc.weight": "",
    }
    assert set(report.scores) == {"naive", "reset", "repair", "refit"}


def test_the_error_of_the_last_layer_is_the_distance_of_the_network() -> None:
    """Both are squared errors over the target's variance, on different held-out rows."""
    report = merged(mlp(5, 8, 3), data(4000, 5))
    last = report.layers[-1]
    assert last.after == pytest.approx(report.scores["refit"], rel=0.2)
    assert report.method == "refit"
