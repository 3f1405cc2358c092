"""The matching objective, measured exactly: ``Σ ⟨A, π(B)⟩`` over the parameters, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

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
#: From this many elements on, compiled code saves more than it takes to load: a millisecond per million.
_LARGE = 1 << 18
#: Elements that are permuted at a time, half of what the second cache of a processor holds.
_SLICE = 1 << 17
#: Elements of small tensors that are multiplied together.
_TOGETHER = 1 << 19


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
        return _product(len(a))(a.numpy(), b.numpy())
    if not a.is_cpu:
        return float(torch.dot(a.double(), b.to(a.device).double()))
    pairs = zip(torch.split(a, _CHUNK), torch.split(b, _CHUNK), strict=True)
    return sum(float(torch.dot(x.double(), y.double().to(x.device))) for x, y in pairs)


def _product(numel: int) -> Callable[[NDArray[np.float32], NDArray[np.float32]], float]:
    """What multiplies vectors that are parts of a tensor of ``numel`` elements."""
    if numel < _LARGE:
        return _chunked_product
    from lightning_rebasin.compiled import wide_product

    return wide_product


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
    names = objective_tensors(spec) if names is None else tuple(names)
    small = [name for name in names if _quick(reference[name]) and _quick(source[name])]
    products = _dot_products(
        [reference[name].detach().numpy().reshape(-1) for name in small],
        [_permuted(source[name].detach().numpy(), spec.maps.get(name), permutation) for name in small],
    )
    found = dict.fromkeys(names, 0.0)
    found.update(zip(small, products, strict=True))
    for name in set(names).difference(small):
        a, b = reference[name].detach(), source[name].detach()
        axis_map = None if permutation is None else spec.maps.get(name)
        if permutation is None or axis_map is None:
            found[name] = inner_product(a, b)
        else:
            found[name] = _permuted_product(a, b, axis_map, permutation)
    return found


def _quick(tensor: Tensor) -> bool:
    """Whether it is small, and fit for NumPy, whose calls are shorter than torch's."""
    return tensor.dtype is torch.float32 and tensor.is_cpu and 0 < tensor.numel() <= _SMALL


def _permuted(
    array: NDArray[np.float32], axis_map: AxisMap | None, permutation: Permutation | None
) -> NDArray[np.float32]:
    """``π(array)``, flat."""
    if permutation is not None and axis_map is not None:
        axes = axis_map.whole_axes
        if axes is None:
            array = permute_tensor(torch.from_numpy(array), axis_map, permutation).numpy()
        else:
            array = array.reshape(axis_map.site_shape)
            for site, group in axes:
                array = array.take(permutation.flat(group).numpy(), site)
    return array.reshape(-1)


def _dot_products(left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> list[float]:
    """``⟨a, b⟩`` of each pair of vectors in float64: many small ones together, because every call takes its time."""
    found: list[float] = []
    start, numel = 0, 0
    for stop, vector in enumerate(left, 1):
        numel += len(vector)
        if stop == len(left) or numel >= _TOGETHER:
            products = np.concatenate(left[start:stop]).astype(np.float64)
            products *= np.concatenate(right[start:stop])
            starts = itertools.accumulate([len(v) for v in left[start : stop - 1]], initial=0)
            found += np.add.reduceat(products, list(starts)).tolist()
            start, numel = stop, 0
    return found


def _permuted_product(a: Tensor, b: Tensor, axis_map: AxisMap, permutation: Permutation) -> float:
    """``⟨a, π(b)⟩``; where only whole axes move, slice by slice, so that what is permuted stays in the cache."""
    axes = axis_map.whole_axes
    if axes is None:
        return inner_product(a, permute_tensor(b, axis_map, permutation))
    a, b = a.reshape(axis_map.site_shape), b.reshape(axis_map.site_shape)
    orders = {site: permutation.flat(group).to(b.device) for site, group in axes}
    rows = max(1, _SLICE * len(b) // max(b.numel(), 1)) if b.is_cpu else len(b)
    plain = a.dtype is b.dtype is torch.float32 and a.is_cpu and b.is_cpu
    product = _product(a.numel()) if plain else None
    total = 0.0
    for start in range(0, len(b), rows):
        moved = b[start : start + rows] if 0 not in orders else b.index_select(0, orders[0][start : start + rows])
        for site, order in orders.items():
            moved = moved.index_select(site, order) if site else moved
        x, y = a[start : start + rows], moved
        total += product(x.reshape(-1).numpy(), y.reshape(-1).numpy()) if product else inner_product(x, y)
    return total


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
    found, large = {}, []
    for name in names:
        tensor = state[name].detach()
        if _quick(tensor):
            wide = tensor.numpy().reshape(-1).astype(np.float64)
            found[name] = math.sqrt(np.dot(wide, wide))
        else:
            large.append(name)
    found.update(_large_norms(state, large))
    return found


def _large_norms(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, float]:
    """In the precision of the tensors first, all of them fetched from the device at once."""
    if not names:
        return {}
    real = [torch.view_as_real(t) if t.is_complex() else t for t in (state[name].detach() for name in names)]
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
