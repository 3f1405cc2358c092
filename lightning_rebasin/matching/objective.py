"""The matching objective, measured exactly: ``Σ ⟨A, π(B)⟩`` over the parameters, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.matching.parameters import Parameters
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap

#: Elements converted to float64 at a time: small enough to stay in the cache.
_CHUNK = 1 << 14
#: Elements that are permuted at a time, half of what the second cache of a processor holds.
_SLICE = 1 << 17


def inner_product(a: Tensor, b: Tensor) -> float:
    """``⟨a, b⟩`` accumulated in float64, whatever the dtypes; the real part for complex tensors.

    Example:
        >>> inner_product(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
    """
    if a.is_complex():
        a, b = (
            torch.view_as_real(a.resolve_conj()),
            torch.view_as_real(b.resolve_conj()),
        )
    a, b = a.detach().reshape(-1), b.detach().reshape(-1)
    if a.dtype is b.dtype is torch.float32 and a.is_cpu and b.is_cpu:
        return _chunked_product(a.numpy(), b.numpy())
    if not a.is_cpu:
        return float(torch.dot(a.double(), b.to(a.device).double()))
    pairs = zip(torch.split(a, _CHUNK), torch.split(b, _CHUNK), strict=True)
    return sum(
        float(torch.dot(x.double(), y.double().to(x.device))) for x, y in pairs
    )


def _chunked_product(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """``⟨a, b⟩`` in float64 by NumPy, whose calls are shorter than torch's."""
    if len(a) <= _CHUNK:
        return float(np.dot(a.astype(np.float64), b.astype(np.float64)))
    starts = range(0, len(a), _CHUNK)
    return sum(
        float(
            np.dot(
                a[i : i + _CHUNK].astype(np.float64),
                b[i : i + _CHUNK].astype(np.float64),
            )
        )
        for i in starts
    )


def inner_products(
    spec: PermutationSpec,
    reference: Parameters,
    source: Parameters,
    permutation: Permutation | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, float]:
    """``⟨A, π(B)⟩`` of every tensor of the objective.

    Args:
        spec: The spec.
        reference: The weights A.
        source: The weights B.
        permutation: π; the identity if left out.
        names: Only these tensors; all of A if left out.

    Returns:
        The inner products by tensor, in float64.
    """
    orders: dict[str, NDArray[np.int64]] = {}
    found: dict[str, float] = {}
    for name in reference.tensors if names is None else names:
        axis_map = None if permutation is None else spec.maps.get(name)
        if name in reference.small and name in source.small:
            if permutation is None or axis_map is None:
                b = source.wide(name)
            else:
                moved = _permuted(
                    source.small[name], axis_map, permutation, orders
                )
                b = moved.reshape(-1).astype(np.float64)
            found[name] = float(np.dot(reference.wide(name), b))
        elif permutation is None or axis_map is None:
            found[name] = inner_product(
                reference.tensors[name], source.tensors[name]
            )
        else:
            found[name] = _permuted_product(
                reference.tensors[name],
                source.tensors[name],
                axis_map,
                permutation,
            )
    return found


def _permuted(
    array: NDArray[np.float32],
    axis_map: AxisMap,
    permutation: Permutation,
    orders: dict[str, NDArray[np.int64]],
) -> NDArray[np.float32]:
    """``π(array)``; ``orders`` keeps what has been looked up."""
    axes = axis_map.whole_axes
    if axes is None:
        moved: NDArray[np.float32] = permutation.apply_map(
            torch.from_numpy(array), axis_map
        ).numpy()
        return moved
    array = array.reshape(axis_map.site_shape)
    for site, group in axes:
        if group not in orders:
            orders[group] = permutation.flat(group).numpy()
        array = array.take(orders[group], site)
    return array


def _permuted_product(
    a: Tensor, b: Tensor, axis_map: AxisMap, permutation: Permutation
) -> float:
    """``⟨a, π(b)⟩``; where only whole axes move, slice by slice, so that what is permuted stays in the cache."""
    axes = axis_map.whole_axes
    if axes is None:
        return inner_product(a, permutation.apply_map(b, axis_map))
    a, b = a.reshape(axis_map.site_shape), b.reshape(axis_map.site_shape)
    orders = {
        site: permutation.flat(group).to(b.device) for site, group in axes
    }
    rows = max(1, _SLICE * len(b) // max(b.numel(), 1)) if b.is_cpu else len(b)
    total = 0.0
    for start in range(0, len(b), rows):
        moved = (
            b[start : start + rows]
            if 0 not in orders
            else b.index_select(0, orders[0][start : start + rows])
        )
        for site, order in orders.items():
            moved = moved.index_select(site, order) if site else moved
        total += inner_product(a[start : start + rows], moved)
    return total


def objective(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permutation: Permutation | None = None,
    names: Iterable[str] | None = None,
) -> float:
    """``Σ ⟨A, π(B)⟩`` over the parameters, each tied one once, running statistics never.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (2, 1)})
        >>> a, b = {"w": torch.tensor([[1.0], [2.0]])}, {"w": torch.tensor([[2.0], [1.0]])}
        >>> objective(spec, a, b), objective(spec, a, b, Permutation(spec, {"h": torch.tensor([1, 0])}))
        (4.0, 5.0)
    """
    names = objective_tensors(spec) if names is None else tuple(names)
    return sum(
        inner_products(
            spec,
            Parameters(reference, names),
            Parameters(source, names),
            permutation,
        ).values()
    )


def group_similarity(
    spec: PermutationSpec,
    products: Mapping[str, float],
    norms: tuple[Mapping[str, float], Mapping[str, float]],
) -> dict[str, float]:
    """Cosine between the weights of all units of a group and of their matches, for every group.

    Args:
        spec: The spec.
        products: From :func:`inner_products`.
        norms: Euclidean norm of each tensor of the reference and of the source.

    Returns:
        Cosine by group id; 0 for groups without any weight.
    """
    totals = {group: [0.0, 0.0, 0.0] for group in spec.groups}
    for name, product in products.items():
        axis_map = spec.maps.get(name)
        for group in axis_map.groups if axis_map is not None else ():
            total = totals[group]
            total[0] += product
            total[1] += norms[0][name] ** 2
            total[2] += norms[1][name] ** 2
    found = {}
    for group, (product, a, b) in totals.items():
        scale = math.sqrt(a) * math.sqrt(b)
        found[group] = product / scale if scale else 0.0
    return found
