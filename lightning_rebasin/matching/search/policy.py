"""Where descents start and in which order they visit the groups.

The default is built from what works on real pairs of networks.  Annealed starts (:mod:`.anneal`) find far better
optima than any number of descents from the identity or from random permutations; one descent from the identity costs
little, is right when the two networks share a basin already, and makes sure that the answer is never worse than doing
nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from lightning_rebasin.errors import ConfigurationError, PermutationError
from lightning_rebasin.matching.result import MatchState
from lightning_rebasin.matching.search.anneal import FAST, SLOW, Schedule
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Init = Literal["identity", "random"] | Permutation | MatchState
VisitOrder = Literal["random", "forward", "backward", "alternating"]
StartKind = Literal["identity", "random", "given", "annealed"]
ORDERS: tuple[VisitOrder, ...] = (
    "random",
    "forward",
    "backward",
    "alternating",
)
#: Descents of the default policy: identity, annealed slowly, annealed fast.
DEFAULT_DESCENTS = 3
#: Networks share a basin if doing nothing reaches this share of the best objective found.
SAME_BASIN = 0.95
#: Above this cosine between the networks no other permutation can be far better, so nothing else is tried.
OBVIOUS = 0.9
#: Share of the largest objective that two networks of these norms could have, from which on nothing else is tried.
PROVED = 1.0 - 1e-5
#: Relative disturbance that makes further annealed starts differ.
NOISE = 0.3


@dataclass(frozen=True)
class Start:
    """One descent of the plan.

    Args:
        name: For the report.
        kind: What it starts from.
        order: Order of the visits.
        schedule: How an annealed start cools.
    """

    name: str
    kind: StartKind
    order: VisitOrder
    schedule: Schedule = SLOW


def plan(
    init: Init | None, restarts: int | None, order: VisitOrder | None
) -> tuple[Start, ...]:
    """The descents to run.

    Args:
        init: What the caller asked to start from.
        restarts: How many descents the caller asked for.
        order: Order of the visits that the caller asked for.
    """
    if init is not None:
        return _from_given(init, restarts or 1, order)
    first = order or "forward"
    starts = [
        Start("identity", "identity", first),
        Start("annealed slowly", "annealed", first, SLOW),
        Start("annealed fast", "annealed", first, FAST),
    ]
    total = restarts or DEFAULT_DESCENTS
    varied = itertools.product((0.5, 2.0, 0.3, 3.0), (20, 15, 12, 10, 25))
    schedules = itertools.cycle(varied)
    for n in range(total - len(starts)):
        hot, sweeps = next(schedules)
        schedule = Schedule(sweeps, hot, 0.05, NOISE)
        name = f"annealed, variant {n}"
        starts.append(Start(name, "annealed", order or "random", schedule))
    return tuple(starts[:total])


def _from_given(
    init: Init, count: int, order: VisitOrder | None
) -> tuple[Start, ...]:
    """Descents from what the caller gave, which differ in the order of their visits only."""
    kind: StartKind = "given"
    if init in ("identity", "random"):
        kind = cast("StartKind", init)
    starts = []
    for n in range(count):
        visits = order or "random"
        # From a good start (activations, the last measurement) input to output ends higher than a random order does.
        if isinstance(init, Permutation) and n == 0:
            visits = order or "forward"
        starts.append(Start(f"{kind}, {visits} order {n}", kind, visits))
    return tuple(starts)


def orders(
    order: VisitOrder,
    count: int,
    sweeps: int,
    generator: torch.Generator,
    *,
    first: int = 0,
) -> Iterator[Sequence[int]]:
    """The order of the visits in each sweep, from sweep number ``first`` on."""
    forward = range(count)
    for sweep in range(first, sweeps):
        if order == "random":
            yield torch.randperm(count, generator=generator).tolist()
        elif order == "forward" or (order == "alternating" and sweep % 2 == 0):
            yield forward
        else:
            yield forward[::-1]


def check_options(
    spec: PermutationSpec,
    init: Any,
    restarts: int | None,
    max_sweeps: int,
    order: Any,
) -> None:
    """Refuse options that cannot work.

    Raises:
        PermutationError: The start belongs to another spec.
        ConfigurationError: Any other option.
    """
    given = init.permutation if isinstance(init, MatchState) else init
    if isinstance(given, Permutation):
        if given.spec is not spec and given.spec != spec:
            raise PermutationError(
                "the initial permutation belongs to another spec"
            )
    elif given not in (None, "identity", "random"):
        raise ConfigurationError(
            f"init must be None, 'identity', 'random' or a Permutation, not {init!r}"
        )
    if restarts is not None and restarts < 1:
        raise ConfigurationError(
            f"restarts must be at least 1, not {restarts}"
        )
    if max_sweeps < 1:
        raise ConfigurationError(
            f"max_sweeps must be at least 1, not {max_sweeps}"
        )
    if order is not None and order not in ORDERS:
        raise ConfigurationError(
            f"order must be one of {', '.join(ORDERS)}, not {order!r}"
        )
