"""The loss on a segment of input space is the one that can be written down, and the network does not notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.classifier import Classifier
from helpers.input_spaces import (
    Quadratic,
    TokenClassifier,
    TwoMoons,
    itself,
    moon_loss,
)
from helpers.models import BatchNormCNN, mlp
from helpers.untouched import untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_rebasin import input_barrier
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 6))
def test_a_quadratic_has_its_closed_form(seed, dim):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    hessian = matrix + matrix.T
    centre, a, b = torch.randn(3, dim, generator=generator).double()
    module = Quadratic(hessian, centre)
    (path,) = input_barrier(
        module, a[None], b[None], None, loss=itself, points=9
    )
    # ½ (p + λ q)ᵀ H (p + λ q) with p = a − c and q = b − a
    p, q = a - centre, b - a
    lam = np.array(path.lambdas)
    constant, slope, curvature = (
        float(x @ hessian @ y) for x, y in ((p, p), (p, q), (q, q))
    )
    expected = 0.5 * constant + lam * slope + 0.5 * lam**2 * curvature
    assert np.allclose(path.losses, expected, rtol=1e-9, atol=1e-9)
    assert path.maximum == pytest.approx(expected.max())
    # The chord takes the constant and the slope away: −½ λ (1 − λ) qᵀ H q is left.
    height = max(0.0, -curvature / 8)
    assert path.curve.height("loss", "chord") == pytest.approx(
        height, abs=1e-9
    )


def test_between_the_horns_of_a_moon_lies_the_other_one():
    a, b = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    (path,) = input_barrier(TwoMoons(), a, b, 0, points=41)
    for lam, loss in zip(path.lambdas, path.losses, strict=True):
        point = np.array([2 * lam - 1, 0.0])
        assert loss == pytest.approx(moon_loss(point, 0), rel=1e-3, abs=1e-4)
    # At the origin moon 0 is 1 away, and the arc of moon 1 has radius 1 around (1, ½).
    assert path.input_at(path.curve.at("loss")).tolist() == [0.0, 0.0]
    assert path.maximum == pytest.approx(
        20 * (1 - (1.25**0.5 - 1) ** 2), rel=1e-5
    )


def test_many_pairs_are_what_each_is_alone_whatever_the_chunk():
    module = BatchNormCNN().double()
    a, b = torch.rand(2, 6, 3, 8, 8, dtype=torch.float64)
    target = torch.arange(6) % 5
    together = input_barrier(module, a, b, target, points=7)
    for size in (1, 5, 1000):
        chunked = input_barrier(
            module, a, b, target, points=7, chunk_size=size
        )
        assert np.allclose(chunked.maxima, together.maxima, rtol=1e-12)
    for i in range(6):
        (alone,) = input_barrier(
            module, a[i : i + 1], b[i : i + 1], target[i : i + 1], points=7
        )
        assert np.allclose(alone.losses, together[i].losses, rtol=1e-12)


def test_no_more_inputs_than_a_chunk_go_through_the_network_at_once():
    module = mlp(4, 8, 3)
    seen = []
    module[0].register_forward_hook(
        lambda _m, inputs, _o: seen.append(len(inputs[0]))
    )
    a, b = torch.rand(2, 10, 4)
    input_barrier(module, a, b, 0, points=11, chunk_size=16)
    # one input is tried first
    assert seen == [1, *[16] * 6, 14]


def test_the_first_and_last_points_are_the_ends_to_the_bit():
    module = mlp(4, 8, 3)
    a, b = torch.rand(2, 3, 4)
    target = torch.tensor([0, 1, 2])
    paths = input_barrier(module, a, b, target, points=3)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(
            module(b), target, reduction="none"
        )
    assert torch.equal(torch.stack([p.corners[1] for p in paths]), b)
    assert [p.losses[-1] for p in paths] == pytest.approx(losses.tolist())


@pytest.mark.parametrize("inference", [False, True])
def test_the_module_and_the_generators_are_untouched(inference):
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
    )
    with untouched(module), torch.inference_mode(inference):
        a, b = torch.zeros(3, 4), torch.ones(3, 4)
        paths = input_barrier(module, a, b, 0, points=3)
    assert not paths[0].corners.is_inference()


def test_a_lightning_module_is_run_by_its_forward():
    module, ends = Classifier(), torch.rand(2, 4, 6)
    with untouched(module):
        paths = input_barrier(module, *ends, 1, points=3)
    assert len(paths) == 4


def test_tokens_are_joined_by_their_embeddings():
    module = TokenClassifier()
    a, b = torch.randint(11, (2, 4, 5))
    paths = input_barrier(module, a, b, 2, points=3, embedding="words")
    assert paths[0].corners.shape == (2, 5, 8)
    ends = torch.stack([a, b], 1)
    with torch.no_grad():
        for i, path in enumerate(paths):
            expected = nn.functional.cross_entropy(
                module(ends[i]), torch.tensor([2, 2]), reduction="none"
            )
            got = [path.losses[0], path.losses[-1]]
            assert got == pytest.approx(expected.tolist(), rel=1e-5)


OK = torch.zeros(2, 6)
TOKENS = torch.zeros(2, 5, dtype=torch.long)
WRONG = {
    "another shape": (
        (OK, torch.zeros(2, 5), 0),
        {},
        DataError,
        r"x_a \(2, 6\) and x_b \(2, 5\)",
    ),
    "a list": (([0.0], OK, 0), {}, DataError, "x_a must be a tensor"),
    "no batch axis": (
        (OK[0], OK[0], 0),
        {},
        DataError,
        r"pass x\[None\]",
    ),
    "no pair": ((OK[:0], OK[:0], 0), {}, DataError, "at least one"),
    "integers": (
        (OK.long(), OK.long(), 0),
        {},
        DataError,
        "int64 have nothing between them",
    ),
    "not for this network": (
        (torch.zeros(2, 7), torch.zeros(2, 7), 0),
        {},
        DataError,
        r"cannot be run on one input of shape \(1, 7\)",
    ),
    "NaN": (
        (OK, OK / 0, 0),
        {},
        NonFiniteError,
        "input 0 holds NaN or infinity",
    ),
    "too few targets": (
        (OK, OK, torch.tensor([0, 1, 2])),
        {},
        DataError,
        "3 targets for 2 pairs",
    ),
    "no such class": (
        (OK, OK, 3),
        {},
        DataError,
        "target 3 is not a class: the network has 3 outputs",
    ),
    "targets that are no classes": (
        (OK, OK, 0.5),
        {},
        DataError,
        "needs target classes",
    ),
    "one loss for all": (
        (OK, OK, None),
        {"loss": lambda output, _: output.mean()},
        ConfigurationError,
        r"one number per sample, shape \(6,\), and returned \(\)",
    ),
    "an embedding that is not there": (
        (TOKENS, TOKENS, 0),
        {"embedding": "words"},
        ConfigurationError,
        "not a submodule of Classifier; its embedding layers are none",
    ),
    "a chunk of nothing": (
        (OK, OK, 0),
        {"chunk_size": 0},
        ConfigurationError,
        "chunk_size=0",
    ),
    "one point": (
        (OK, OK, 0),
        {"points": 1},
        ConfigurationError,
        "points=1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused(name):
    arguments, options, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        input_barrier(Classifier(), *arguments, **{"points": 3, **options})


def test_a_wrong_embedding_is_refused():
    module = TokenClassifier()
    with pytest.raises(ConfigurationError, match="'words', 'places'"):
        input_barrier(module, TOKENS, TOKENS, 0, embedding="word")
    with pytest.raises(DataError, match="embeds tokens, integers"):
        input_barrier(
            module, TOKENS.float(), TOKENS.float(), 0, embedding="words"
        )
    module.places = module.words
    with pytest.raises(
        ConfigurationError, match="called the embedding 2 times"
    ):
        input_barrier(module, TOKENS, TOKENS, 0, embedding="words")


def test_outputs_that_are_no_logits_need_a_loss():
    with pytest.raises(ConfigurationError, match="does not return logits"):
        input_barrier(
            Quadratic(torch.eye(2), torch.zeros(2)), OK[:, :2], OK[:, :2], 0
        )
