"""The matching objective, measured exactly: ``Σ ⟨A, π(B)⟩`` over the parameters, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.symmetry.permutation import Permutation, permute_tensor
from lightning_rebasin.symmetry.spec import PermutationSpec

#: Elements converted to float64 at a time: small enough to stay in the cache.
_CHUNK = 1 << 16


def inner_product(a: Tensor, b: Tensor) -> float:
    """``⟨a, b⟩`` accumulated in float64, whatever the dtypes; the real part for complex tensors.

    Example:
        >>> inner_product(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
    """
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = a.detach().reshape(-1), b.detach().reshape(-1)
    pairs = zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)
    return sum(float(torch.dot(x.double(), y.double().to(x.device))) for x, y in pairs)


def objective(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permutation: Permutation | None = None,
    names: Iterable[str] | None = None,
) -> float:
    """``Σ ⟨A, π(B)⟩`` over the parameters, each tied tensor once, running statistics never.

    Args:
        spec: The spec.
        reference: The weights A.
        source: The weights B.
        permutation: π; the identity if left out.
        names: Only these tensors; all of the objective if left out.

    Returns:
        The sum, in float64.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (2, 1)})
        >>> a, b = {"w": torch.tensor([[1.0], [2.0]])}, {"w": torch.tensor([[2.0], [1.0]])}
        >>> objective(spec, a, b), objective(spec, a, b, Permutation(spec, {"h": torch.tensor([1, 0])}))
        (4.0, 5.0)
    """
    total = 0.0
    for name in objective_tensors(spec) if names is None else names:
        b = source[name]
        axis_map = spec.maps.get(name)
        if permutation is not None and axis_map is not None:
            b = permute_tensor(b, axis_map, permutation)
        total += inner_product(reference[name], b)
    return total
