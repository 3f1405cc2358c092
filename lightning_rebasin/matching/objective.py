"""The matching objective, measured exactly: ``Σ ⟨A, π(B)⟩`` over the parameters, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.symmetry.permutation import Permutation, permute_tensor
from lightning_rebasin.symmetry.spec import AxisMap, PermutationSpec

#: Elements converted to float64 at a time: small enough to stay in the cache.
_CHUNK = 1 << 14
_FULL = (torch.float32, torch.float64)
#: Up to this many elements NumPy's shorter calls win.
_SMALL = 1 << 16


def inner_product(a: Tensor, b: Tensor) -> float:
    """``⟨a, b⟩`` accumulated in float64, whatever the dtypes; the real part for complex tensors.

    Example:
        >>> inner_product(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
    """
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = a.detach().reshape(-1), b.detach().reshape(-1)
    if a.dtype is b.dtype is torch.float32 and a.is_cpu and b.is_cpu:
        return _chunked_product(a.numpy(), b.numpy())
    if not a.is_cpu:
        return float(torch.dot(a.double(), b.to(a.device).double()))
    pairs = zip(torch.split(a, _CHUNK), torch.split(b, _CHUNK), strict=True)
    return sum(float(torch.dot(x.double(), y.double().to(x.device))) for x, y in pairs)


def _chunked_product(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """``⟨a, b⟩`` in float64 by NumPy, whose calls are shorter than torch's."""
    if len(a) <= _CHUNK:
        return float(np.dot(a.astype(np.float64), b.astype(np.float64)))
    starts = range(0, len(a), _CHUNK)
    return sum(
        float(np.dot(a[i : i + _CHUNK].astype(np.float64), b[i : i + _CHUNK].astype(np.float64))) for i in starts
    )


def inner_products(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permutation: Permutation | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, float]:
    """``⟨A, π(B)⟩`` of every tensor of the objective: parameters, each tied one once, running statistics never.

    Args:
        spec: The spec.
        reference: The weights A.
        source: The weights B.
        permutation: π; the identity if left out.
        names: Only these tensors; all of the objective if left out.

    Returns:
        The inner products by tensor, in float64.
    """
    found = {}
    for name in objective_tensors(spec) if names is None else names:
        a, b = reference[name], source[name]
        axis_map = None if permutation is None else spec.maps.get(name)
        if a.numel() <= _SMALL and a.dtype is b.dtype is torch.float32 and a.is_cpu and b.is_cpu:
            found[name] = _small_product(a.detach().numpy(), b.detach().numpy(), axis_map, permutation)
            continue
        b = b.detach()
        if permutation is not None and axis_map is not None:
            b = _permuted(b, axis_map, permutation)
        found[name] = inner_product(a, b)
    return found


def _small_product(
    a: NDArray[np.float32], b: NDArray[np.float32], axis_map: AxisMap | None, permutation: Permutation | None
) -> float:
    """``⟨a, π(b)⟩`` in float64 by NumPy, which takes less time to start than torch."""
    if permutation is not None and axis_map is not None:
        axes = _axes(axis_map)
        if axes is None:
            b = permute_tensor(torch.from_numpy(b), axis_map, permutation).numpy()
        else:
            b = b.reshape(axis_map.site_shape)
            for site, group in axes:
                b = b.take(permutation.flat(group).numpy(), site)
    return _chunked_product(a.reshape(-1), b.reshape(-1))


#: For each axis map of whole axes only, the group of each permuted dimension; ``None`` for any other map.
_WHOLE_AXES: WeakKeyDictionary[AxisMap, tuple[tuple[int, str], ...] | None] = WeakKeyDictionary()


def _permuted(tensor: Tensor, axis_map: AxisMap, permutation: Permutation) -> Tensor:
    """:func:`permute_tensor`, faster for the common case of whole axes."""
    axes = _axes(axis_map)
    if axes is None:
        return permute_tensor(tensor, axis_map, permutation)
    moved = tensor.reshape(axis_map.site_shape)
    for site, group in axes:
        moved = moved.index_select(site, permutation.flat(group).to(tensor.device))
    return moved


def _axes(axis_map: AxisMap) -> tuple[tuple[int, str], ...] | None:
    if axis_map not in _WHOLE_AXES:
        _WHOLE_AXES[axis_map] = _whole_axes(axis_map)
    return _WHOLE_AXES[axis_map]


def _whole_axes(axis_map: AxisMap) -> tuple[tuple[int, str], ...] | None:
    found = []
    for sites, components in axis_map.clusters:
        size = axis_map.site_shape[sites[0]]
        index = components[0].index
        single = len(sites) == len(components) == 1 and tuple(index.shape) == (size, 1)
        if not (single and torch.equal(index[:, 0], torch.arange(size))):
            return None
        found.append((sites[0], components[0].group))
    return tuple(found)


def objective(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permutation: Permutation | None = None,
    names: Iterable[str] | None = None,
) -> float:
    """``Σ ⟨A, π(B)⟩``: the sum of :func:`inner_products`.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (2, 1)})
        >>> a, b = {"w": torch.tensor([[1.0], [2.0]])}, {"w": torch.tensor([[2.0], [1.0]])}
        >>> objective(spec, a, b), objective(spec, a, b, Permutation(spec, {"h": torch.tensor([1, 0])}))
        (4.0, 5.0)
    """
    return sum(inner_products(spec, reference, source, permutation, names).values())


def tensor_norms(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, float]:
    """Euclidean norm of each tensor; not finite if any entry is not."""
    names = tuple(names)
    if not names:
        return {}
    real = [torch.view_as_real(t) if t.is_complex() else t for t in map(state.__getitem__, names)]
    wide = [t if t.dtype in _FULL else t.float() for t in real]
    norms = torch.stack([torch.linalg.vector_norm(t).double().cpu() for t in wide]).tolist()
    # The squares of large float32 entries overflow, and of small ones vanish, long before the norm does.
    return {
        name: norm if 1e-15 < norm < 1e15 else float(torch.linalg.vector_norm(t.double()))
        for name, norm, t in zip(names, norms, wide, strict=True)
    }


def group_similarity(
    spec: PermutationSpec, products: Mapping[str, float], norms: tuple[Mapping[str, float], Mapping[str, float]]
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
        for group in dict.fromkeys(c.group for c in axis_map.components) if axis_map is not None else ():
            total = totals[group]
            total[0] += product
            total[1] += norms[0][name] ** 2
            total[2] += norms[1][name] ** 2
    found = {}
    for group, (product, a, b) in totals.items():
        scale = math.sqrt(a) * math.sqrt(b)
        found[group] = product / scale if scale else 0.0
    return found
