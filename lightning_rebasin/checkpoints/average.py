"""The average of aligned models: at once, or tensor by tensor as it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.checkpoints.lazy import LazyTensors
from lightning_rebasin.merging.interpolate import mixed
from lightning_rebasin.symmetry import Transform


def averaged(
    states: Sequence[Mapping[str, Tensor]],
    permutations: Sequence[Transform | None],
    shares: Sequence[float],
    *,
    progress: bool = False,
) -> LazyTensors:
    """``Σ w_i · π_i(θ_i)``, each tensor computed when it is asked for, and not kept.

    Args:
        states: The models' weights, perhaps memory-mapped.
        permutations: One per model, ``None`` for the identity.
        shares: Share of each model; they sum to 1.
        progress: Show a progress bar of the bytes that were asked for.
    """
    plan = {}
    for name, tensor in states[0].items():
        dtype = tensor.dtype
        for state in states[1:]:
            dtype = torch.promote_types(dtype, state[name].dtype)
        plan[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")
    total = sum(tensor.nbytes for tensor in plan.values())
    bar = tqdm(
        total=total,
        desc="merging",
        unit="B",
        unit_scale=True,
        disable=not progress,
    )

    def count(name: str) -> None:
        bar.update(plan[name].nbytes)
        if bar.n >= total:
            bar.close()

    def make(name: str) -> Tensor:
        moved = [
            permuted(state, name, permutation)
            for state, permutation in zip(states, permutations, strict=True)
        ]
        result = mixed(moved, shares)
        count(name)
        return result

    return LazyTensors(plan, make, count)


def average_aligned(
    states: Sequence[Mapping[str, Tensor]],
    permutations: Sequence[Transform | None],
    shares: Sequence[float],
    *,
    progress: bool = False,
) -> dict[str, Tensor]:
    """All tensors of :func:`averaged` at once; names that share a tensor in every model share the result.

    Args:
        states: The models' weights, perhaps memory-mapped.
        permutations: One per model, ``None`` for the identity.
        shares: Share of each model; they sum to 1.
        progress: Show a progress bar.
    """
    lazy = averaged(states, permutations, shares, progress=progress)
    done: dict[tuple[int, ...], str] = {}
    result: dict[str, Tensor] = {}
    for name in lazy:
        key = tuple(state[name].data_ptr() for state in states)
        twin = done.setdefault(key, name) if states[0][name].numel() else name
        if twin != name and all(
            _same_view(state[name], state[twin]) for state in states
        ):
            result[name] = result[twin]
            lazy.skip(name)
        else:
            result[name] = lazy[name]
    return result


def permuted(
    state: Mapping[str, Tensor], name: str, permutation: Transform | None
) -> Tensor:
    """One tensor of a permuted model."""
    if permutation is None:
        return state[name]
    axis_map = permutation.spec.maps.get(
        permutation.spec.aliases.get(name, name)
    )
    return (
        state[name]
        if axis_map is None
        else permutation.apply_map(state[name], axis_map)
    )


def _same_view(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.dtype, a.shape, a.stride()) == (
        b.data_ptr(),
        b.dtype,
        b.shape,
        b.stride(),
    )
