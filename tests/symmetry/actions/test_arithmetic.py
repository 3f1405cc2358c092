"""Random rotations, Cayley's map, the mean-free basis and the geometric mean, against SciPy and NumPy."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from torch import Tensor

from lightning_rebasin.symmetry.actions.arithmetic import (
    are_real_numbers,
    cayley,
    length_balance,
    matrix_balance,
    mean_free_basis,
    random_rotations,
    skew,
    wide,
    with_precision_of,
)

sizes, seeds = st.integers(1, 6), st.integers(0, 2**31)
close = torch.testing.assert_close


def matrices(count: int, size: int, seed: int) -> Tensor:
    numbers = np.random.default_rng(seed).standard_normal((count, size, size))
    return torch.from_numpy(numbers)


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


@given(st.integers(0, 3), st.integers(0, 6), seeds)
@settings(deadline=None, max_examples=25)
def test_random_rotations_are_orthogonal(
    count: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = random_rotations(count, size, generator)
    assert found.dtype == torch.float64
    close(found @ found.mT, eye(size).expand(count, size, size))


def test_random_rotations_have_the_moments_of_the_haar_measure() -> None:
    """``E tr = 0``, ``E tr² = 1`` for O(n); without the sign correction of QR the first fails by far."""
    found = random_rotations(20000, 3, torch.Generator().manual_seed(0))
    traces = found.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(float(traces.mean())) < 0.03
    assert float(traces.square().mean()) == pytest.approx(1, abs=0.04)


@given(sizes, seeds)
@settings(deadline=None, max_examples=25)
def test_cayley_is_a_rotation_that_only_the_skew_part_makes(
    size: int, seed: int
) -> None:
    latent = matrices(2, size, seed)
    turned = cayley(latent)
    close(turned @ turned.mT, eye(size).expand(2, size, size))
    close(torch.linalg.det(turned), torch.ones(2).double())
    close(cayley(latent + latent.mT + skew(latent)), cayley(skew(latent)))
    s = skew(latent)[0].numpy()
    textbook = (np.eye(size) - s) @ np.linalg.inv(np.eye(size) + s)
    close(turned[0], torch.from_numpy(textbook))
    assert torch.equal(cayley(torch.zeros(size, size)).double(), eye(size))


@given(st.integers(1, 40))
def test_the_basis_spans_what_has_no_mean(size: int) -> None:
    basis = mean_free_basis(size)
    assert basis.shape == (size, size - 1)
    close(basis.T @ basis, eye(size - 1))
    close(basis @ basis.T, eye(size) - 1 / size)


@given(sizes, seeds)
@settings(deadline=None, max_examples=25)
def test_the_geometric_mean_balances(size: int, seed: int) -> None:
    """``A G A = A⁻¹ H A⁻¹``, and A² is the geometric mean of G⁻¹ and H as SciPy computes it."""
    p, n = matrices(2, size, seed), matrices(2, size, seed + 1)
    g, h = p @ p.mT + 0.1 * eye(size), n @ n.mT + 0.1 * eye(size)
    a = matrix_balance(g, h)
    inverse = torch.linalg.inv(a)
    close(a @ g @ a, inverse @ h @ inverse, rtol=1e-5, atol=1e-5)
    close(a, a.mT)
    assert float(torch.linalg.eigvalsh(a).min()) > 0
    root = scipy.linalg.sqrtm(g[0].numpy())
    other = np.linalg.inv(root)
    inner = scipy.linalg.sqrtm(root @ h[0].numpy() @ root)
    textbook = scipy.linalg.sqrtm(other @ inner @ other).real
    close(a[0], torch.from_numpy(textbook), rtol=1e-5, atol=1e-5)


@given(sizes, seeds)
@settings(deadline=None, max_examples=15)
def test_balanced_sides_stay(size: int, seed: int) -> None:
    p = matrices(1, size, seed)
    gram = p @ p.mT + 0.1 * eye(size)
    close(matrix_balance(gram, gram), eye(size)[None], rtol=1e-7, atol=1e-7)


def test_dead_directions_stay_and_the_others_are_balanced() -> None:
    """Written: directions 0 and 1; read: 1 and 2.  Only direction 1 is both."""
    written = torch.diag(torch.tensor([4.0, 1.0, 0.0])).double()[None]
    read = torch.diag(torch.tensor([0.0, 16.0, 9.0])).double()[None]
    expected = torch.diag(torch.tensor([1.0, 2.0, 1.0])).double()[None]
    close(matrix_balance(written, read), expected)
    lengths = [gram.diagonal(dim1=1, dim2=2) for gram in (written, read)]
    close(length_balance(*lengths), expected.diagonal(dim1=1, dim2=2))


def test_precision_is_that_of_the_finer_and_comes_back() -> None:
    half, double = torch.ones(2).half(), torch.ones(2).double()
    assert wide(half, double).dtype == torch.float64
    assert wide(half, half).dtype == torch.float16
    assert wide(double, half).dtype == torch.float64
    assert with_precision_of(half, double).dtype == torch.float16


@pytest.mark.parametrize(
    ("given_", "real"),
    [
        (torch.ones(2), True),
        (torch.ones(2).long(), True),
        (torch.ones(3), False),
        (torch.ones(2).bool(), False),
        (torch.ones(2) * 1j, False),
        ([1.0, 1.0], False),
    ],
)
def test_what_real_numbers_are(given_: object, real: bool) -> None:
    assert are_real_numbers(given_, (2,)) is real
