"""Weight matching for specs with other kinds than permutations: balance, descend from several starts, go back.

Both networks are balanced first, so that a stretched copy is recognised; what is found is led back to the lengths of
the reference at the end.  Where no group mixes units the best order alone is found by the engine for permutations,
whose search is far better than descents from random orders, and signs follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching.result import MatchResult
from lightning_rebasin.matching.search.general import (
    MOST_SWEEPS,
    GeneralInit,
    GeneralMatcher,
    NamedInit,
    State,
    Sweeps,
    mixes,
)
from lightning_rebasin.matching.search.two_gauges import (
    TRAINED,
    TwoGauges,
    better_of,
    stretches,
)
from lightning_rebasin.symmetry.actions.kinds import PERMUTATION
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: Finds the best permutations alone of two networks, from a start or from several of its own.
Order = Callable[[State, State, Transform | None], Transform]
#: Descents where nobody says how many.
_DESCENTS = 3


def match_generally(
    spec: PermutationSpec,
    reference: State,
    source: State,
    *,
    init: GeneralInit | None,
    restarts: int | None,
    sweeps: Callable[[torch.Generator], Sweeps],
    seed: int,
    solver: Solver,
    progress: bool,
    order: Order,
) -> MatchResult:
    """Weight matching under any spec.

    Args:
        spec: What may be changed.
        reference: Weights A.
        source: Weights B.
        init: Where to start; ``None`` for the best order, the identity and random starts.
        restarts: Number of descents, by default 3, or one if ``init`` is given or a single step finds the optimum.
        sweeps: Makes the orders of the visits of one descent.
        seed: Seeds every random choice.
        solver: Assignment solver.
        progress: Show a progress bar.
        order: Finds the best permutations alone.

    Raises:
        ConfigurationError: ``init`` is the state of a permutation matching, or belongs to another spec.
    """
    _check(spec, init)
    generator = torch.Generator().manual_seed(seed)
    networks = TwoGauges.of(spec, reference, source)
    if isinstance(init, Transform):
        init = networks.to_balanced(init)
    matcher = GeneralMatcher(spec, *networks.balanced, solver)
    if init is None and restarts is None and matcher.exact:
        # One step finds the best, wherever it starts.
        restarts = 1
    searches = not matcher.exact and not mixes(spec)
    inits = _inits(spec, init, restarts)
    if searches and init is None:
        best = ("best order", order(*networks.balanced, None))
        inits = [best, *inits][: restarts or _DESCENTS]
    found = matcher.match(
        inits, lambda: sweeps(generator), generator, progress=progress
    )
    if searches and stretches(spec) and not isinstance(init, str):
        trained = order(*networks.trained(), init)
        found = _in_either_gauge(found, spec, networks, trained, solver)
    return replace(found, transform=networks.from_balanced(found.transform))


def _check(spec: PermutationSpec, init: object) -> None:
    """Refuse what is no start for this spec."""
    named = ("identity", "random", "bases")
    if not (init is None or isinstance(init, Transform) or init in named):
        raise ConfigurationError(
            f"init must be None, 'identity', 'random', 'bases' or a Transform for this spec, not {init!r}"
        )
    if isinstance(init, Transform) and init.spec != spec:
        raise ConfigurationError(
            "the initial transform belongs to another spec"
        )


def _inits(
    spec: PermutationSpec, init: GeneralInit | None, restarts: int | None
) -> list[NamedInit]:
    """Where the descents start: random rotations are hopeless, so where units mix what both networks share decides."""
    if init is not None:
        name = init if isinstance(init, str) else "given"
        return [(name, init)] * (restarts or 1)
    if mixes(spec):
        first: Literal["bases", "identity"] = "bases"
        count = restarts or 1
    else:
        first = "identity"
        count = restarts or _DESCENTS
    found: list[NamedInit] = [(first, first)]
    found += [("random", "random")] * (count - 1)
    return found


def _in_either_gauge(
    found: MatchResult,
    spec: PermutationSpec,
    networks: TwoGauges,
    order: Transform,
    solver: Solver,
) -> MatchResult:
    """A matching, or the best one with the order that the networks have in the lengths they were trained with.

    Args:
        found: The best between balanced networks.
        spec: What may be changed.
        networks: Both networks.
        order: The best permutations in trained lengths.
        solver: Assignment solver.
    """
    orders = {
        name: element
        for name, element in order.elements.items()
        if spec.groups[name].kind == PERMUTATION
    }
    # What is left (signs) is chosen between balanced networks, in that order.
    matcher = GeneralMatcher(spec, *networks.balanced, solver, orders)
    roots = range(sum(g.parent is None for g in spec.groups.values()))
    start = Transform.of(spec, orders)
    other, descent = matcher.descend(
        start, iter([roots] * MOST_SWEEPS), TRAINED
    )
    plain = GeneralMatcher(spec, *networks.trained(), solver)
    chosen = better_of(
        found, other, descent, matcher.objective, plain.objective
    )
    if chosen.transform is found.transform:
        return chosen
    return replace(chosen, similarity=matcher.similarity(other))
