"""Precision and random matrices, for the kinds whose elements are numbers."""

from __future__ import annotations

import torch
from torch import Tensor

#: Squared lengths below this share of their mean count as 0: what is dead on one side cannot be balanced and stays.
_FLOOR = 1e-8
#: How far from 1 the mean of two projectors may be on a direction that is in both ranges.
_SHARED = 1e-6


def wide(units: Tensor, element: Tensor) -> Tensor:
    """Units in the precision of an element: stored elements are float64, those that are being learned are not.

    Args:
        units: Of any dtype.
        element: A real tensor, on the device of the units or on the CPU.
    """
    return units.to(torch.promote_types(units.dtype, element.dtype))


def with_precision_of(units: Tensor, changed: Tensor) -> Tensor:
    """The result in the dtype in which the units came: rounded once, at the end."""
    return changed.to(units.dtype)


def are_real_numbers(element: object, shape: tuple[int, ...]) -> bool:
    """Whether something is a tensor of integers or floating-point numbers in a shape.

    Args:
        element: Anything that somebody gave.
        shape: What it must have.

    Example:
        >>> are_real_numbers(torch.ones(2), (2,)), are_real_numbers(torch.ones(2) > 0, (2,))
        (True, False)
    """
    if not isinstance(element, Tensor) or element.shape != shape:
        return False
    return not element.is_complex() and element.dtype != torch.bool


def random_rotations(
    count: int, size: int, generator: torch.Generator
) -> Tensor:
    """Orthogonal matrices from the Haar measure, float64 ``(count, size, size)``.

    The QR decomposition of a Gaussian matrix, with the signs of R's diagonal taken out of it, is uniform.

    Args:
        count: How many.
        size: Of each.
        generator: CPU generator.

    References:
        Mezzadri, "How to generate random matrices from the classical compact groups", 2007 (arXiv math-ph/0609050).
    """
    gaussian = torch.randn(
        count, size, size, generator=generator, dtype=torch.float64
    )
    q, r = torch.linalg.qr(gaussian)
    signs: Tensor = r.diagonal(dim1=-2, dim2=-1).sign()
    rotations: Tensor = q * signs[:, None, :]
    return rotations


def skew(latent: Tensor) -> Tensor:
    """The skew-symmetric part of square matrices."""
    return (latent - latent.mT) / 2


def cayley(latent: Tensor) -> Tensor:
    """A rotation for every square matrix: ``(I + S)⁻¹(I − S)`` with S its skew part; the identity for 0.

    Example:
        >>> turned = cayley(torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64))
        >>> bool(torch.allclose(turned @ turned.T, torch.eye(2, dtype=torch.float64)))
        True
    """
    s = skew(latent)
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device).expand_as(s)
    found: Tensor = torch.linalg.solve(eye + s, eye - s)
    return found


def mean_free_basis(size: int) -> Tensor:
    """An orthonormal basis of the vectors of mean zero, float64 ``(size, size − 1)``.

    Columns 1… of the Householder reflection that takes the first unit vector to ``1/√size``.

    Example:
        >>> basis = mean_free_basis(3)
        >>> bool(torch.allclose(basis.sum(0), torch.zeros(2, dtype=torch.float64)))
        True
    """
    mean = torch.full((size,), size**-0.5, dtype=torch.float64)
    normal = mean.clone()
    normal[0] -= 1
    length = normal.norm()
    if length > 0:
        normal = normal / length
    reflection = torch.eye(size, dtype=torch.float64) - 2 * torch.outer(
        normal, normal
    )
    return reflection[:, 1:]


def matrix_balance(plus: Tensor, minus: Tensor) -> Tensor:
    """The symmetric positive A with ``A G A = A⁻¹ H A⁻¹``: see :mod:`~lightning_rebasin.symmetry.actions.balance`.

    Args:
        plus: Gram matrices G of what is written, float64 ``(count, size, size)``.
        minus: Gram matrices H of what is read.

    Example:
        >>> a = matrix_balance(4 * torch.eye(2).double()[None], 9 * torch.eye(2).double()[None])
        >>> round(a[0, 0, 0].item() ** 4, 6)
        2.25
    """
    common = _common_range(plus, minus)
    eye = torch.eye(plus.shape[-1], dtype=plus.dtype)
    # Both are 1 outside what is written and read, so that the mean is 1 there: dead directions stay.
    plus, minus = (
        common @ gram @ common + (eye - common) for gram in (plus, minus)
    )
    root = _power(plus, 0.5)
    inverse_root = _power(plus, -0.5)
    inner = _power(root @ minus @ root, 0.5)
    return _power(inverse_root @ inner @ inverse_root, 0.5)


def length_balance(plus: Tensor, minus: Tensor) -> Tensor:
    """Factors ``(H / G)^¼``; 1 for what is dead on one side.

    Args:
        plus: Squared lengths G of what is written, float64 ``(count, size)``.
        minus: Squared lengths H of what is read.

    Example:
        >>> length_balance(torch.tensor([[1.0, 0.0]]), torch.tensor([[16.0, 16.0]])).tolist()
        [[2.0, 1.0]]
    """
    alive = _above_floor(plus) & _above_floor(minus)
    ratio = torch.where(alive, minus, 1.0) / torch.where(alive, plus, 1.0)
    return ratio**0.25


def _above_floor(lengths: Tensor) -> Tensor:
    """Which squared lengths are not 0 beside the others of their instance."""
    return lengths > _FLOOR * lengths.mean(-1, keepdim=True)


def _common_range(plus: Tensor, minus: Tensor) -> Tensor:
    """Projectors onto the directions that are both written and read."""
    both = (_range(plus) + _range(minus)) / 2
    values, vectors = torch.linalg.eigh(both)
    # A direction that lies in both ranges has the eigenvalue 1.
    inside = (values > 1 - _SHARED).to(both.dtype)
    found: Tensor = (vectors * inside.unsqueeze(-2)) @ vectors.mT
    return found


def _range(gram: Tensor) -> Tensor:
    """Projectors onto the ranges of Gram matrices."""
    values, vectors = torch.linalg.eigh(gram)
    inside = _above_floor(values).to(gram.dtype)
    found: Tensor = (vectors * inside.unsqueeze(-2)) @ vectors.mT
    return found


def _power(matrices: Tensor, exponent: float) -> Tensor:
    """A power of symmetric positive matrices."""
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    values = values.clamp(min=torch.finfo(torch.float64).tiny)
    found: Tensor = (vectors * values.unsqueeze(-2) ** exponent) @ vectors.mT
    return found
