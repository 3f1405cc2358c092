"""Closed forms: what the refit of simple networks must be."""

import numpy as np
import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch import nn

from lightning_rebasin import Permutation, infer_spec, refit
from lightning_rebasin.errors import ConfigurationError, StateDictError


def data(samples, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, *shape, generator=generator)


def outputs(module, state, x):
    module.load_state_dict(state)
    with torch.no_grad():
        return module.eval()(x)


@pytest.mark.parametrize(
    ("build", "shape"),
    [(lambda: mlp(5, 8, 8, 3), (5,)), (BatchNormCNN, (3, 8, 8))],
)
def test_two_identical_ends_give_the_end_itself(build, shape):
    net = randomise(build())
    state = {k: v.clone() for k, v in net.state_dict().items()}
    x = data(256, *shape)
    found = refit(net, [state, state], list(x.split(64)))
    expected = outputs(net, state, x)
    with torch.no_grad():
        torch.testing.assert_close(
            found.module(x), expected, atol=1e-5, rtol=1e-5
        )


def test_a_linear_layer_is_the_least_squares_solution():
    """Without a ridge the refit of one layer is NumPy's least squares onto the mean of the ends' outputs."""
    net = nn.Sequential(nn.Linear(4, 2))
    a = {k: v.clone() for k, v in randomise(net, 1).state_dict().items()}
    b = {k: v.clone() for k, v in randomise(net, 2).state_dict().items()}
    x = data(400, 4)
    found = refit(net, [a, b], [x], ridge=0.0)
    target = 0.5 * (outputs(net, a, x) + outputs(net, b, x))
    design = np.c_[x.double().numpy(), np.ones(len(x))]
    solution = np.linalg.lstsq(design, target.double().numpy(), rcond=None)[0]
    expected = torch.from_numpy(design @ solution).float()
    with torch.no_grad():
        torch.testing.assert_close(
            found.module(x), expected, atol=1e-5, rtol=1e-5
        )


def test_a_planted_permutation_gives_the_end_itself():
    net = randomise(mlp(5, 8, 3))
    a = {k: v.clone() for k, v in net.state_dict().items()}
    spec = infer_spec(net, data(1, 5))
    planted = Permutation.random(spec, torch.Generator().manual_seed(3))
    aligned = planted.inverse().apply(planted.apply(a))
    x = data(256, 5)
    found = refit(net, [a, aligned], list(x.split(64)))
    with torch.no_grad():
        torch.testing.assert_close(
            found.module(x), outputs(net, a, x), atol=1e-5, rtol=1e-5
        )


def test_the_result_is_a_network_of_the_same_class_and_keys():
    net = randomise(BatchNormCNN())
    a = {k: v.clone() for k, v in randomise(net, 1).state_dict().items()}
    b = {k: v.clone() for k, v in randomise(net, 2).state_dict().items()}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = refit(net, [a, b], list(data(128, 3, 8, 8).split(32)))
    assert type(found.module) is BatchNormCNN
    net.load_state_dict(found.module.state_dict(), strict=True)
    assert before.keys() == found.module.state_dict().keys()
    assert found.scores[found.method] == min(found.scores.values())


@pytest.mark.parametrize("samples", [2, 20])
def test_few_samples_are_finite(samples):
    net = randomise(mlp(5, 32, 3))
    a = {k: v.clone() for k, v in randomise(net, 1).state_dict().items()}
    b = {k: v.clone() for k, v in randomise(net, 2).state_dict().items()}
    found = refit(net, [a, b], [data(samples, 5)])
    state = found.module.state_dict()
    assert all(bool(torch.isfinite(t).all()) for t in state.values())


def test_wrong_input_is_a_typed_error():
    net = mlp(5, 8, 3)
    state = net.state_dict()
    with pytest.raises(StateDictError):
        refit(net, [state, mlp(5, 9, 3).state_dict()], [data(8, 5)])
    with pytest.raises(ConfigurationError):
        refit(net, [state, state], [data(8, 5)], shares=[1.0])
