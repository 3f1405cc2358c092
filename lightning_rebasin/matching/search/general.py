"""Coordinate descent over groups of any kind, in textbook form.

Visit one family of groups at a time, everything else as it is.  The units of each of its groups are laid out as rows in
the reference and in the source, transformed by all the *other* groups; the products of these rows are the cost, and the
steps of the kinds choose the elements.  A step is kept only if the exact float64 objective gains, so where a tensor
meets one family on two axes (and the step is a linearisation) the objective still never falls.

Pure permutation specs have a faster engine, which keeps and updates its costs; both climb the same objective.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 1 (arXiv 2209.04836).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.matching.importance import weighted
from lightning_rebasin.matching.result import Descent, MatchResult
from lightning_rebasin.matching.steps.nested import best_elements
from lightning_rebasin.matching.steps.permutation import Family, families_of
from lightning_rebasin.matching.steps.procrustes import MIXING
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    rows_of_units,
)

State = Mapping[str, Tensor]
#: The order of the visits in each sweep.
Sweeps = Iterator[Sequence[int]]
GeneralInit = Literal["identity", "random", "bases"] | Transform
#: What a start is called in the report, and the start.
NamedInit = tuple[str, GeneralInit]
#: A gain below this share of the objective is rounding.
_NOISE = 1e-12
#: Most sweeps where nobody says how many.
MOST_SWEEPS = 100
#: Rotations approach their best slowly: a sweep that gains a smaller share than this is the last one.
_ENOUGH = 1e-4


@final
class GeneralMatcher:
    """Weight matching of two networks under a spec with any kinds of groups.

    Args:
        spec: What may be changed.
        reference: Weights A.
        source: Weights B.
        solver: Assignment solver, for groups that permute.
        fixed: Elements of groups that are not to be chosen.

    Raises:
        StateDictError: A tensor is missing, extra or has another shape.
        NonFiniteError: A tensor holds NaN or infinity.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        reference: State,
        source: State,
        solver: Solver = "auto",
        fixed: Mapping[str, Tensor] | None = None,
    ) -> None:
        spec.check_state(reference, "reference", finite=True)
        spec.check_state(source, "source", finite=True)
        self._spec = spec
        self._families = families_of(spec)
        #: Whether one step finds the optimum, so that neither further sweeps nor other starts can gain.
        self.exact = _one_step(spec, self._families)
        self._solver = solver
        self._fixed = fixed
        self._enough = _ENOUGH if mixes(spec) else _NOISE
        names = objective_tensors(spec)
        # In their own precision: each is widened to float64 only while it is looked at.
        self._reference = {
            name: reference[name].detach().cpu() for name in names
        }
        self._source = {name: source[name].detach().cpu() for name in names}

    def match(
        self,
        inits: Sequence[NamedInit],
        sweeps: Callable[[], Sweeps],
        generator: torch.Generator,
        *,
        progress: bool = False,
    ) -> MatchResult:
        """Descend from each start and keep the best end.

        Args:
            inits: What each start is called, and where it is.
            sweeps: Makes the orders of the visits of one descent; its length is the most sweeps.
            generator: Draws random starts.
            progress: Show a progress bar.
        """
        begin = time.perf_counter()
        identity = Transform.identity(self._spec)
        at_identity = self.objective(identity)
        best, objective = identity, at_identity
        descents = []
        for name, init in tqdm(
            inits,
            "weight matching",
            unit="descent",
            disable=not progress,
        ):
            start = self._start(init, generator)
            found, descent = self.descend(start, sweeps(), name=name)
            descents.append(descent)
            if descent.objective > objective:
                best, objective = found, descent.objective
        norms = (_norm(self._reference), _norm(self._source))
        return MatchResult(
            transform=best,
            objective=objective,
            identity_objective=at_identity,
            descents=tuple(descents),
            similarity=self.similarity(best),
            identity_similarity=self.similarity(identity),
            norms=norms,
            seconds=time.perf_counter() - begin,
        )

    def similarity(self, transform: Transform) -> dict[str, float]:
        """Cosine between everything that a group acts on and its match, by group; elements keep these lengths."""
        products = self._products(transform, self._reference)
        found = {}
        for name in self._spec.groups:
            tensors = [
                tensor
                for tensor in self._spec.tensors_of(name)
                if tensor in products
            ]
            lengths = [
                _norm({n: state[n] for n in tensors})
                for state in (self._reference, self._source)
            ]
            if all(lengths):
                product = sum(products[tensor] for tensor in tensors)
                found[name] = product / (lengths[0] * lengths[1])
        return found

    def objective(self, transform: Transform) -> float:
        """``Σ ⟨A, T(B)⟩`` over the parameters."""
        return sum(self._products(transform, self._reference).values())

    def _products(
        self, transform: Transform, names: Iterable[str]
    ) -> dict[str, float]:
        """``⟨A, T(B)⟩`` of some tensors."""
        found = {}
        for name in names:
            # One after the other: an embedding in float64 is a large part of what a matching needs.
            moved = transform.apply_to(name, self._source[name].double())
            tensor = self._reference[name].double()
            found[name] = float(torch.dot(tensor.flatten(), moved.flatten()))
        return found

    def _start(
        self, init: GeneralInit, generator: torch.Generator
    ) -> Transform:
        if isinstance(init, Transform):
            return init
        if init == "random":
            return _random(self._spec, generator)
        identity = Transform.identity(self._spec)
        return self._from_bases(identity) if init == "bases" else identity

    def _from_bases(self, identity: Transform) -> Transform:
        """Mix what mixes by the tensors whose other axes both networks share, then everything else by all tensors."""
        found = identity
        rest = []
        for family in self._families:
            shared = self._shared_bases(family)
            if not shared:
                rest.append(family)
                continue
            costs = self._costs(family, found, shared)
            best = best_elements(family.groups, costs, self._solver)
            found = Transform.of(self._spec, {**found.elements, **best})
        values = self._products(found, self._reference)
        for family in rest:
            found, values = self._visit(family, found, values)
        return found

    def _shared_bases(self, family: Family) -> list[str]:
        """Tensors on which a family that mixes units acts, and no other group: embeddings, positions, a head."""
        if family.root.kind not in MIXING:
            return []
        found = []
        for name in self._reference:
            axis_map = self._spec.maps.get(name)
            whole = axis_map is not None and len(axis_map.shape) > 1
            if whole and axis_map is not None:
                alone = axis_map.groups == (family.root.id,)
                if alone:
                    found.append(name)
        return found

    def descend(
        self, start: Transform, sweeps: Sweeps, name: str = "given"
    ) -> tuple[Transform, Descent]:
        """Visit family after family until a sweep gains nothing.

        Args:
            start: Where to start.
            sweeps: The orders of the visits.
            name: What the start is called in the report.
        """
        begin = time.perf_counter()
        current = start
        values = self._products(start, self._reference)
        objectives = [sum(values.values())]
        converged = False
        for order in sweeps:
            for number in order:
                current, values = self._visit(
                    self._families[number], current, values
                )
            value = sum(values.values())
            gained = value - objectives[-1] > self._enough * abs(value)
            converged = self.exact or not gained
            objectives.append(value)
            if converged:
                break
        seconds = time.perf_counter() - begin
        return current, Descent(name, tuple(objectives), converged, seconds)

    def _visit(
        self, family: Family, current: Transform, values: dict[str, float]
    ) -> tuple[Transform, dict[str, float]]:
        """Move one family to its best elements; keep what it had if that gains nothing."""
        touched = self._touched(family)
        costs = self._costs(family, current, touched)
        elements = {
            **current.elements,
            **best_elements(family.groups, costs, self._solver, self._fixed),
        }
        proposed = Transform.of(self._spec, elements)
        after = {**values, **self._products(proposed, touched)}
        gain = sum(after.values()) - sum(values.values())
        if gain <= _NOISE * abs(sum(values.values())):
            return current, values
        return proposed, after

    def _touched(self, family: Family) -> list[str]:
        """Tensors on which a family acts."""
        own = {group.id for group in family.groups}
        found = []
        for name in self._reference:
            axis_map = self._spec.maps.get(name)
            if axis_map is not None and own.intersection(axis_map.groups):
                found.append(name)
        return found

    def _costs(
        self, family: Family, current: Transform, names: Iterable[str]
    ) -> dict[str, dict[int, Tensor]]:
        """For each group of a family ``⟨A_i, B_j⟩`` between all its members, with the other groups in place.

        Kinds that act on several sets of things have such products for each set, by the number of its units.
        """
        own = {group.id for group in family.groups}
        costs: dict[str, dict[int, Tensor]] = {}
        for name in names:
            axis_map = self._spec.maps.get(name)
            for component in (
                axis_map.components if axis_map is not None else ()
            ):
                if component.group not in own:
                    continue
                assert axis_map is not None
                others = _without(axis_map, component, own)
                # The larger of the copies go before the next one comes.
                source = _rows(
                    current.apply_map(self._source[name].double(), others),
                    axis_map,
                    component,
                )
                tensor = self._reference[name].double()
                product = _rows(tensor, axis_map, component) @ source.T
                group = self._spec.groups[component.group]
                units = component.units(group)
                of_group = costs.setdefault(group.id, {})
                known = of_group.get(units)
                of_group[units] = product if known is None else known + product
        return costs


def _random(spec: PermutationSpec, generator: torch.Generator) -> Transform:
    """Random elements of all groups that keep lengths.

    What stretches stays: both networks are balanced, and a stretched source has larger products with anything, so
    that no step would ever take the stretch back.
    """
    drawn = Transform.random(spec, generator)
    kept = [g.id for g in spec.groups.values() if not action_of(g).stretches]
    return drawn.only(kept)


def mixes(spec: PermutationSpec) -> bool:
    """Whether units of some group are mixed."""
    return any(group.kind in MIXING for group in spec.groups.values())


def complete(
    spec: PermutationSpec,
    reference: State,
    source: State,
    decided: Mapping[str, Tensor],
    solver: Solver = "auto",
) -> Transform:
    """Choose by weights what is left to choose when some groups are decided.

    Args:
        spec: What may be changed.
        reference: Weights A.
        source: Weights B.
        decided: Elements of the groups that are decided, for example by activations.
        solver: Assignment solver.
    """
    matcher = GeneralMatcher(
        spec,
        weighted(spec, reference),
        weighted(spec, source),
        solver,
        decided,
    )
    roots = sum(group.parent is None for group in spec.groups.values())
    start = Transform.of(spec, decided)
    sweeps = [range(roots)] * MOST_SWEEPS
    return matcher.descend(start, iter(sweeps))[0]


def _one_step(spec: PermutationSpec, families: Sequence[Family]) -> bool:
    """Whether there is one family only, which no tensor meets at two places: then its step is exact."""
    if len(families) != 1:
        return False
    return all(len(m.clusters) == 1 for m in spec.maps.values())


def _without(
    axis_map: AxisMap, component: Component, family: set[str]
) -> AxisMap:
    """The map without what a family does where one of its components lies; its other axes stay."""
    here = set(component.sites)
    kept = []
    for other in axis_map.components:
        if other.group not in family or not here & set(other.sites):
            kept.append(other)
    return replace(axis_map, components=tuple(kept))


def _rows(tensor: Tensor, axis_map: AxisMap, component: Component) -> Tensor:
    """Each unit as a row of everything it holds in the tensor."""
    units = rows_of_units(tensor.reshape(axis_map.site_shape), component)
    return units.reshape(len(component.index), -1)


def _norm(state: State) -> float:
    squares = 0.0
    for tensor in state.values():
        wide = tensor.flatten().double()
        squares += float(torch.dot(wide, wide))
    return float(squares**0.5)
