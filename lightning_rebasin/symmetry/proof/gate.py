"""The gate: does a permuted network still compute the same function?

Nothing about a spec is taken on trust.  A private float64 copy of the model runs on the example inputs with its own
weights and with the permuted ones, and the outputs must agree to rounding.  Agreement alone could mean that the test
sees nothing (a signal that died in a deep network makes all outputs equal), so there is a *negative control*: one axis
of one tensor permuted alone must change the output.  A tensor whose values are all equal (a fresh bias or batch-norm
statistic) cannot show whether it moved, so the copy gets noise in its place before both runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import EquivalenceError, TraceError
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.proof.compare import (
    Outputs,
    relative_error,
    run_all,
)
from lightning_rebasin.symmetry.proof.diagnose import explain_failure
from lightning_rebasin.symmetry.proof.sandbox import Sandbox
from lightning_rebasin.symmetry.run.copy import unwrap
from lightning_rebasin.symmetry.run.examples import Example, resolve_examples
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import Group

#: Largest relative output error of an exact symmetry in float64, and where some operation rounds to float32.
TOLERANCE, ROUNDED_TOLERANCE = 1e-8, 1e-4
#: How many times larger than the tolerance the answer to the negative control must be.
CONTROL_MARGIN = 100.0
#: How many groups the negative control tries before giving up.
CONTROL_TRIES = 6
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Equivalence:
    """What the gate measured.

    Args:
        error: Largest ``max|f − f'| / max|f|`` over all output tensors and examples.
        control: The same for the negative control; 0 if the spec has nothing to permute.
        tolerance: Largest error that counts as equal.
        rounded: Whether some operation rounded to less than float64 in spite of all.
    """

    error: float
    control: float
    tolerance: float
    rounded: bool = False

    @property
    def equal(self) -> bool:
        """Whether the two functions agree: ``error < tolerance · max(1, control)``."""
        return self.error < self.tolerance * max(1.0, self.control)

    @property
    def sees(self) -> bool:
        """Whether the negative control moved, so that agreement means something."""
        return self.control > CONTROL_MARGIN * self.tolerance


def check_equivalence(
    module: nn.Module,
    transform: Transform,
    *args: Any,
    examples: Sequence[Any] | None = None,
    **kwargs: Any,
) -> float:
    """Prove on examples that a transform leaves the function of a network unchanged.

    Computes ``max|f(x; θ) − f(x; π(θ))| / max|f(x; θ)|`` in float64 and eval mode on a private copy; the caller's
    module is left exactly as it was.

    Args:
        module: The network with real weights; compiled and data-parallel wrappers are looked through.
        transform: The symmetry to check (a permutation, or any other kind), in a spec of this network.
        *args: Example input as for ``forward``; none at all means the module's ``example_input_array``.
        examples: More example inputs: tensors, tuples of arguments, or dicts of keyword arguments.
        **kwargs: Example input as for ``forward``.

    Returns:
        The largest relative error over all output tensors and examples.

    Raises:
        EquivalenceError: The outputs differ; the message names the group, the first tensor responsible and the
            submodule.  Or the check is blind: no tensor permuted alone changes the output.
        StateDictError: The transform is for another network.
        TraceError: There is no example input, or the forward pass fails on it.

    Example:
        >>> from lightning_rebasin import Permutation
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> table = {"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h")}
        >>> spec = PermutationSpec.from_table(table, net.state_dict())
        >>> p = Permutation(spec, {"h": torch.tensor([2, 0, 1])})
        >>> check_equivalence(net, p, torch.ones(4, 2)) < 1e-12
        True
    """
    with _sandbox(
        module, resolve_examples(unwrap(module), args, kwargs, examples)
    ) as (
        sandbox,
        found,
    ):
        return _check(sandbox, transform, found)


def check_in_place(
    module: nn.Module, transform: Transform, *args: Any
) -> float:
    """Like :func:`check_equivalence` for a caller's private copy: a large one is not copied again.

    Args:
        module: The network with real weights; while this runs they are permuted in their own memory, then put back.
        transform: The symmetry to check (a permutation, or any other kind).
        *args: Example input as for ``forward``.

    Returns:
        The largest relative error.

    Raises:
        EquivalenceError: The outputs differ, or the check is blind.
    """
    with _sandbox(
        module, resolve_examples(unwrap(module), args, {}, None), share=True
    ) as (
        sandbox,
        found,
    ):
        return _check(sandbox, transform, found)


@contextmanager
def _sandbox(
    module: nn.Module, examples: tuple[Example, ...], *, share: bool = False
) -> Iterator[tuple[Sandbox, tuple[Example, ...]]]:
    """A sandbox in which the examples run, and the examples."""
    sandbox = Sandbox(module, share=share)
    if sandbox.narrow:
        try:
            sandbox.run(examples[0])
        except TraceError:
            # Code that reads another submodule's weights may find two precisions where torch wants one.
            sandbox = Sandbox(module, narrow=False)
    try:
        yield sandbox, examples
    finally:
        sandbox.close()


def _check(
    sandbox: Sandbox, transform: Transform, found: tuple[Example, ...]
) -> float:
    prepare(sandbox, transform.spec)
    result, baseline = _measure(sandbox, transform, found)
    if not result.equal:
        limit = result.tolerance * max(1.0, result.control)
        raise EquivalenceError(
            explain_failure(
                sandbox,
                transform,
                found,
                baseline,
                error=result.error,
                limit=limit,
            )
        )
    if not result.sees and any(
        _can_move(group) for group in transform.spec.groups.values()
    ):
        raise EquivalenceError(
            f"the check is blind: permuting one tensor alone changes the output by {result.control:.1e} at most, so "
            f"the error of {result.error:.1e} proves nothing; use an example input that the output depends on, or "
            "weights that are not degenerate (zero or constant)"
        )
    return result.error


def measure_equivalence(
    module: nn.Module,
    transform: Transform,
    *args: Any,
    examples: Sequence[Any] | None = None,
    **kwargs: Any,
) -> Equivalence:
    """Measure what :func:`check_equivalence` judges, without judging.

    Args:
        module: The network.
        transform: The symmetry to check (a permutation, or any other kind).
        *args: Example input as for ``forward``.
        examples: More example inputs.
        **kwargs: Example input as for ``forward``.

    Returns:
        Error, control and tolerance.
    """
    with _sandbox(
        module, resolve_examples(unwrap(module), args, kwargs, examples)
    ) as (
        sandbox,
        found,
    ):
        prepare(sandbox, transform.spec)
        return _measure(sandbox, transform, found)[0]


def prepare(sandbox: Sandbox, spec: PermutationSpec) -> None:
    """Give tensors whose values are all equal some noise in the copy, so that what moves them can be seen.

    Args:
        sandbox: The private copy.
        spec: What may move.

    Raises:
        StateDictError: The spec is for another network.
    """
    spec.check_state(sandbox.state, "the module's state dict")
    generator = torch.Generator().manual_seed(0)
    trainable = {
        name
        for name, _ in sandbox.module.named_parameters(remove_duplicate=False)
    }
    for name, tensor in sandbox.state.items():
        if (
            name not in trainable
            and name not in spec.maps
            and not name.endswith(_STATISTICS)
        ):
            continue
        if (
            tensor.is_floating_point()
            and tensor.numel() > 1
            and bool((tensor == tensor.flatten()[0]).all())
        ):
            noise = torch.rand(
                tensor.shape, generator=generator, dtype=tensor.dtype
            ).to(tensor.device)
            # In place, so that tied names follow; a positive tensor (a variance) stays positive.
            sandbox.disturb(
                name, noise * (0.3 * tensor if bool(tensor.any()) else 0.1)
            )


def _measure(
    sandbox: Sandbox, transform: Transform, examples: tuple[Example, ...]
) -> tuple[Equivalence, Outputs]:
    baseline = run_all(sandbox, examples)
    if not any(baseline):
        raise EquivalenceError(
            "the module returns no tensor for the example input, so there is nothing to compare"
        )
    for outputs in baseline:
        for path, tensor in outputs.items():
            if tensor.numel() and bool(torch.isnan(tensor).all()):
                raise EquivalenceError(
                    f"output{path} is NaN everywhere on the example input: nothing can be compared"
                )
    with sandbox.transformed(transform):
        changed = run_all(sandbox, examples)
    error = relative_error(baseline, changed)
    result = Equivalence(
        error,
        0.0,
        ROUNDED_TOLERANCE if sandbox.rounded else TOLERANCE,
        sandbox.rounded,
    )
    for state in _controls(sandbox, transform.spec):
        control = relative_error(baseline, run_all(sandbox, examples, state))
        result = replace(result, control=max(result.control, control))
        if result.sees:
            break
    return result, baseline


def _controls(
    sandbox: Sandbox, spec: PermutationSpec
) -> Iterator[dict[str, Tensor]]:
    """Weights with one axis of one tensor permuted alone: changes that must show."""
    acting = [g for g in spec.groups.values() if spec.tensors_of(g.id)]
    groups = _spread([group for group in acting if _can_move(group)])
    # Second pass, the last tensor: an input of zeros hides the weights that read it, not those that read the units.
    for position in (0, -1):
        for group in groups:
            moving = spec.tensors_of(group.id)
            parameters = [
                n for n in moving if spec.tensors[n].kind == "parameter"
            ]
            name = (parameters or moving)[position]
            axis_map = spec.maps[name]
            one = next(c for c in axis_map.components if c.group == group.id)
            alone = Transform.of(spec, {group.id: action_of(group).far(group)})
            only_there = replace(axis_map, components=(one,))
            moved = alone.apply_map(sandbox.state[name], only_there)
            yield sandbox.changed(sandbox.state, {name: moved})
    for group in groups:
        # Where one (tied) tensor is all that a group moves, moving it alone is the symmetry itself: take another axis.
        name = spec.tensors_of(group.id)[0]
        tensor = sandbox.state[name]
        others = set(range(tensor.ndim)) - set(
            spec.maps[name].dims_of(group.id)
        )
        for dim in others:
            yield sandbox.changed(sandbox.state, {name: tensor.roll(1, dim)})


def _spread(groups: list[Group]) -> list[Group]:
    """The first group, whose signal has the longest way to the output, the last one, and some between."""
    if len(groups) <= CONTROL_TRIES:
        return groups
    return [
        groups[i * (len(groups) - 1) // (CONTROL_TRIES - 1)]
        for i in range(CONTROL_TRIES)
    ]


def _can_move(group: Group) -> bool:
    return not action_of(group).trivial(group)
