"""Why a permuted network computes another function: which group, which tensor, which submodule.

The symmetries that pass form a group, so if a set of them fails together, one half of it fails too: the culprit is
found by bisection over the groups.  Then its tensors are tried one by one (left alone, or moved along an axis that the
spec forgot), and the submodules are watched: in an equal network every intermediate value is a rearrangement of the
original one, so the first submodule whose values are not is where the two runs part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.proof.compare import (
    Outputs,
    relative_error,
    run_all,
)
from lightning_rebasin.symmetry.proof.sandbox import Sandbox
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component

#: How many single-tensor changes are tried before the search for the tensor ends.
TRIES = 96


def explain_failure(
    sandbox: Sandbox,
    transform: Transform,
    examples: Sequence[Example],
    baseline: Outputs,
    *,
    error: float,
    limit: float,
) -> str:
    """The message of the error: what differs by how much, and who is responsible.

    Args:
        sandbox: The copy that was run.
        transform: The transform that changed the function.
        examples: The inputs on which it did.
        baseline: The outputs without it.
        error: The relative error that was measured.
        limit: The one that is allowed.

    Returns:
        A few sentences.
    """

    def error_of(state: dict[str, Tensor]) -> float:
        return relative_error(baseline, run_all(sandbox, examples, state))

    head = f"the permuted network computes another function: relative output error {error:.2e}, allowed {limit:.0e}"
    if (
        noise := relative_error(baseline, run_all(sandbox, examples))
    ) >= limit:
        return f"{head}; the module is not deterministic: the same weights twice already differ by {noise:.2e}"
    culprit = _failing_group(
        transform, lambda p: error_of(p.apply(sandbox.state)) >= limit
    )
    alone = transform.only([culprit])
    group = transform.spec.groups[culprit]
    lines = [head, f"group {culprit!r} ({group.size} units) is wrong"]
    state = alone.apply(sandbox.state)
    fault = _wrong_tensor(
        sandbox, alone, culprit, state, lambda s: error_of(s) < limit
    )
    # Submodules can be told apart only where units change place and nothing else.
    rearranged = action_of(group).rearranges
    where = _first_difference(sandbox, examples, state) if rearranged else None
    names = transform.spec.tensors_of(culprit)
    if fault is None:
        inside = [
            name
            for name in names
            if where is not None and name.startswith(f"{where[0]}.")
        ]
        first = (inside or names)[0]
        fault = f"tensor {first!r} is the first of the {len(names)} that it moves, no single one explains it"
    lines.append(fault)
    if where is not None:
        lines.append(f"the runs part in submodule {where[0]!r} ({where[1]})")
    return "; ".join(lines)


def _failing_group(transform: Transform, fails: Any) -> str:
    """One group that changes the function all by itself."""
    suspects = [g for g, share in transform.moved.items() if share > 0]
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        part = transform.only(half)
        suspects = half if fails(part) else suspects[len(half) :]
    return suspects[0]


def _wrong_tensor(
    sandbox: Sandbox,
    alone: Transform,
    culprit: str,
    state: dict[str, Tensor],
    mends: Any,
) -> str | None:
    spec = alone.spec
    names = spec.tensors_of(culprit)
    for name in names[:TRIES]:
        if mends(sandbox.changed(state, {name: sandbox.state[name]})):
            return f"tensor {name!r} must not move with it"
    budget = TRIES
    for name, dim in _forgotten_axes(spec, culprit):
        budget -= 1
        if budget < 0:
            break
        size = spec.tensors[name].shape[dim]
        sites = tuple((n,) for n in spec.tensors[name].shape)
        whole = AxisMap(
            name,
            sites,
            (Component(culprit, (dim,), torch.arange(size)[:, None]),),
        )
        if mends(
            sandbox.changed(state, {name: alone.apply_map(state[name], whole)})
        ):
            return f"tensor {name!r} must move with it along dimension {dim} and does not"
    return None


def _forgotten_axes(
    spec: PermutationSpec, group: str
) -> Iterator[tuple[str, int]]:
    """Axes of the right size on which nothing acts, those of partly mapped tensors first."""
    size = spec.groups[group].members
    for name in sorted(spec.tensors, key=lambda name: name not in spec.maps):
        axis_map = spec.maps.get(name)
        busy = (
            {d for c in axis_map.components for d in axis_map.dims_of(c.group)}
            if axis_map is not None
            else set()
        )
        for dim, length in enumerate(spec.tensors[name].shape):
            if length == size and dim not in busy and name not in spec.aliases:
                yield name, dim


def _first_difference(
    sandbox: Sandbox, examples: Sequence[Example], state: dict[str, Tensor]
) -> tuple[str, str] | None:
    """Name and class of the first submodule whose output is not a rearrangement of the original one."""
    before = [_signatures(sandbox, example, None) for example in examples]
    after = [_signatures(sandbox, example, state) for example in examples]
    for old, new in zip(before, after, strict=True):
        for (name, kind, a), (_, _, b) in zip(old, new, strict=False):
            if a.shape != b.shape or not torch.allclose(
                a, b, rtol=1e-6, atol=1e-12
            ):
                return name, kind
    return None


def _signatures(
    sandbox: Sandbox, example: Example, state: dict[str, Tensor] | None
) -> list[tuple[str, str, Tensor]]:
    """Order-free moments of every submodule's output, in the order of completion."""
    found: list[tuple[str, str, Tensor]] = []

    def watch(name: str, kind: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            moments = []
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.numel():
                    moments.append(_moments(leaf))
            if moments:
                found.append((name, kind, torch.cat(moments).cpu()))

        return hook

    handles = []
    for name, part in sandbox.module.named_modules():
        if name:
            hook = watch(name, type(part).__name__)
            handles.append(part.register_forward_hook(hook))
    try:
        sandbox.run(example, state)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _moments(tensor: Tensor) -> Tensor:
    """Numbers that do not depend on the order of a tensor's entries."""
    real = (
        torch.view_as_real(tensor) if tensor.is_complex() else tensor.double()
    )
    t = real.flatten()
    powers = [t.mean(), (t * t).mean(), (t**3).mean()]
    return torch.stack([t.min(), t.max(), *powers])
