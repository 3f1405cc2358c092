"""The gate for proposals: which groups really have the kinds that an analysis proposes for them?

Every proposal is run: random elements, far from the identity, in float64, first of all groups together, then (if the
outputs differ) of each group alone, and what changes the function is taken back.  A proposal that the outputs cannot
see is taken back as well: one tensor transformed alone has to change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import RebasinError
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.proof.compare import relative_error, run_all
from lightning_rebasin.symmetry.proof.gate import (
    CONTROL_MARGIN,
    ROUNDED_TOLERANCE,
    TOLERANCE,
    prepare,
)
from lightning_rebasin.symmetry.proof.sandbox import Sandbox, weighs
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.gauge import fold
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: Bytes of parameters from which a model is proved in its own precision: in float64 its weights, their transforms and
#: their gradients would be three times twice as much.
LARGE = 2**30
#: Errors of a network that autograd cannot go through.
_NO_GRADIENT = (RebasinError, RuntimeError, NotImplementedError)


@final
class KindsGate:
    """Runs one network with transforms of several specs.

    Args:
        module: The network with real weights; it is copied.
        examples: Inputs.
        spec: Its permutation spec.
    """

    def __init__(
        self,
        module: nn.Module,
        examples: Sequence[Example],
        spec: PermutationSpec,
    ) -> None:
        # Elements that compute are rounded where weights stay in their own precision.
        self._sandbox = Sandbox(module, narrow=weighs(module) >= LARGE)
        self._examples = tuple(examples)
        prepare(self._sandbox, spec)
        self._baseline = run_all(self._sandbox, self._examples)

    @property
    def tolerance(self) -> float:
        """Largest relative error that counts as equal."""
        rounds = self._sandbox.rounded or self._sandbox.narrow
        return ROUNDED_TOLERANCE if rounds else TOLERANCE

    def error(self, transform: Transform) -> float:
        """Relative error of the outputs under a transform; infinite if it does not run."""
        return self._error_of(transform.apply)

    def _error_of(
        self, change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> float:
        """Relative error of the outputs under changed weights."""
        try:
            state = change(self._sandbox.state)
            outputs = run_all(self._sandbox, self._examples, state)
        except (RebasinError, RuntimeError):
            return float("inf")
        return relative_error(self._baseline, outputs)

    def keeps(self, spec: PermutationSpec) -> bool:
        """Whether the gauge of a spec alone leaves the function as it is."""
        error = self._error_of(lambda state: fold(spec, state))
        return error < self.tolerance

    def holds(self, spec: PermutationSpec, groups: Sequence[str]) -> bool:
        """Whether elements of some groups leave the function as it is."""
        generator = torch.Generator().manual_seed(0)
        drawn = Transform.random(spec, generator).only(groups)
        if self.error(drawn) >= self.tolerance:
            return False
        # Few units may be drawn all but unmoved: the element that moves every one of them decides, too.
        far = {
            g: action_of(spec.groups[g]).far(spec.groups[g]) for g in groups
        }
        return self.error(Transform.of(spec, far)) < self.tolerance

    def sees(self, spec: PermutationSpec, group: str) -> bool:
        """Whether one tensor, transformed alone by an element of a group, changes the function."""
        needed = CONTROL_MARGIN * self.tolerance
        for name, moved in self._alone(spec, group):
            if self._first_order(name, moved) > needed:
                return True
        # Where autograd sees nothing, running the network may.
        for name, moved in self._alone(spec, group):
            state = self._sandbox.changed(self._sandbox.state, {name: moved})
            outputs = run_all(self._sandbox, self._examples, state)
            if relative_error(self._baseline, outputs) > needed:
                return True
        return False

    def _alone(
        self, spec: PermutationSpec, group: str
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors that one element of a group has changed."""
        far = action_of(spec.groups[group]).far(spec.groups[group])
        alone = Transform.of(spec, {group: far})
        for name in _ends(spec.tensors_of(group)):
            own = [c for c in spec.maps[name].components if c.group == group]
            only_there = replace(spec.maps[name], components=tuple(own))
            yield (
                name,
                alone.apply_map(self._sandbox.state[name], only_there),
            )

    def _first_order(self, name: str, moved: Tensor) -> float:
        """A lower bound of how much a change of one tensor changes the outputs, to first order."""
        gradient = self._gradients.get(name)
        if gradient is None:
            return 0.0
        change = moved.double() - self._sandbox.state[name].double()
        return float((gradient * change).sum().abs())

    @cached_property
    def _gradients(self) -> dict[str, Tensor]:
        """Gradients of the sum of all outputs with random signs; one backward pass in place of a run per group."""
        if self._sandbox.narrow:
            # All activations of a large network in float64 are too much to keep.
            return {}
        found: dict[str, Tensor] = {}
        try:
            for example in self._examples:
                for name, gradient in self._sandbox.gradients(
                    example, _signed_mean
                ).items():
                    known = found.get(name)
                    found[name] = (
                        gradient if known is None else known + gradient
                    )
        except _NO_GRADIENT:
            return {}
        return found

    def close(self) -> None:
        """Give shared memory back as it was."""
        self._sandbox.close()


def _signed_mean(outputs: Mapping[str, Tensor]) -> Tensor:
    """The mean of all outputs in units of the largest one, with random signs: it changes by less than they do."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for output in outputs.values():
        if not output.requires_grad or not output.is_floating_point():
            continue
        finite = torch.where(output.isfinite(), output, 0.0)
        coins = torch.randint(2, finite.shape, generator=generator)
        signs = (2 * coins - 1).to(finite.device)
        largest = finite.detach().abs().max().clamp(min=1e-300)
        mean = (finite * signs).mean() / largest
        total = total.to(mean.device) + mean / len(outputs)
    return total


def _ends(names: Sequence[str]) -> Iterator[str]:
    """The last tensor, the first, and what lies between."""
    yield names[-1]
    yield from names[:-1]


#: Makes the spec in which some groups have the proposal of this number (beginning with 0); others stay permutations.
Build = Callable[[Mapping[str, int]], PermutationSpec]


def prove(
    gate: KindsGate,
    build: Build,
    proposals: Mapping[str, Sequence[str]],
    own_group: Callable[[str, int], str],
) -> tuple[dict[str, int], dict[str, str]]:
    """Find for each group the largest proposal that the gate lets pass.

    Args:
        gate: The gate.
        build: Makes a spec of choices.
        proposals: For each group the kinds that are proposed, the largest first.
        own_group: The id of the group that a proposal adds or changes.

    Returns:
        The number of the proposal for each group that has one, and for the others why.
    """
    choices = dict.fromkeys(proposals, 0)
    why: dict[str, str] = {}
    # All together first: this is the usual case, and costs two runs.
    spec = build(choices)
    changed = [own_group(g, n) for g, n in choices.items()]
    suspects = list(choices) if not gate.holds(spec, changed) else []
    blind = [
        g for g, n in choices.items() if not gate.sees(spec, own_group(g, n))
    ]
    for group in dict.fromkeys([*suspects, *blind]):
        found, reason = _largest(
            gate, build, group, proposals[group], own_group
        )
        del choices[group]
        if found is not None:
            choices[group] = found
        if reason:
            why[group] = reason
    changed = [own_group(g, n) for g, n in choices.items()]
    if suspects and not gate.holds(build(choices), changed):
        # Each holds by itself and they do not together, which no rule foresees: nothing unproved is handed out.
        return {}, dict.fromkeys(
            proposals, "the kinds of several groups do not go together"
        )
    return choices, why


def _largest(
    gate: KindsGate,
    build: Build,
    group: str,
    kinds: Sequence[str],
    own_group: Callable[[str, int], str],
) -> tuple[int | None, str]:
    """The first proposal for one group that holds by itself and can be seen."""
    reason = ""
    for number, kind in enumerate(kinds):
        spec = build({group: number})
        own = own_group(group, number)
        if not gate.holds(spec, [own]):
            reason = (
                f"random elements of the kind {kind!r} change the function"
            )
        elif not gate.sees(spec, own):
            reason = f"the example does not see elements of the kind {kind!r}"
        else:
            return number, reason
    return None, reason
