"""Distance and cosine against the joined vectors."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_rebasin.landscape.geometry import separation


def states():
    generator = torch.Generator().manual_seed(0)

    def one():
        return {
            "w": torch.randn(3, 2, generator=generator),
            "b": torch.randn(3, generator=generator),
        }

    return one(), one()


def test_both_numbers_are_those_of_the_joined_vectors():
    a, b = states()
    x, y = (
        torch.cat([t.flatten() for t in s.values()]).double() for s in (a, b)
    )
    found = separation(a, b, ["w", "b"])
    assert found.distance == pytest.approx(float((x - y).norm()), rel=1e-12)
    cosine = torch.cosine_similarity(x, y, dim=0)
    assert found.cosine == pytest.approx(float(cosine), rel=1e-12)


def test_only_the_named_tensors_count():
    a, b = states()
    b["w"] = a["w"]
    assert separation(a, b, ["w"]).distance == 0.0
    assert separation(a, b, ["w"]).cosine == pytest.approx(1.0)
    assert separation(a, b, ["w", "b"]).distance > 0.0


def test_half_precision_is_measured_in_double():
    a = {"w": torch.full((4096,), 1.0, dtype=torch.float16)}
    b = {"w": torch.full((4096,), 4.0, dtype=torch.float16)}
    # 4096 · 9 = 36864 would lose digits, and its float16 sum of squares would overflow for larger ones.
    assert separation(a, b, ["w"]).distance == math.sqrt(4096 * 9)


def test_a_zero_vector_has_no_direction():
    a, b = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert math.isnan(separation(a, b, ["w"]).cosine)
