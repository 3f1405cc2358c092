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
from typing import Any, Literal

import torch

from lightning_rebasin.errors import ConfigurationError, PermutationError
from lightning_rebasin.matching.result import MatchState
from lightning_rebasin.matching.search.anneal import FAST, SLOW, Schedule
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Init = Literal["identity", "random"] | Permutation | MatchState
Order = Literal["random", "forward", "backward", "alternating"]
Kind = Literal["identity", "random", "given", "annealed"]
ORDERS: tuple[Order, ...] = ("random", "forward", "backward", "alternating")
#: Descents of the default policy: identity, annealed slowly, annealed fast.
DEFAULT_DESCENTS = 3
#: Networks share a basin if doing nothing reaches this share of the best objective found.
SAME_BASIN = 0.95
#: Above this cosine between the networks no other permutation can be far better, so nothing else is tried.
OBVIOUS = 0.9
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
    kind: Kind
    order: Order
    schedule: Schedule = SLOW


def plan(
    init: Init | None, restarts: int | None, order: Order | None
) -> tuple[Start, ...]:
    """The descents to run.

    Args:
        init: What the caller asked to start from.
        restarts: How many descents the caller asked for.
        order: Order of the visits that the caller asked for.
    """
    visits = order or "random"
    if isinstance(init, Permutation):
        # From a good start (activations, the last measurement) input to output ends higher than a random order does.
        tours = [
            order or ("random" if n else "forward")
            for n in range(restarts or 1)
        ]
        return tuple(
            Start(f"given, {tour} order {n}", "given", tour)
            for n, tour in enumerate(tours)
        )
    if isinstance(init, MatchState):
        return tuple(
            Start(f"given, {visits} order {n}", "given", visits)
            for n in range(restarts or 1)
        )
    if init is not None:
        return tuple(
            Start(f"{init}, {visits} order {n}", init, visits)
            for n in range(restarts or 1)
        )
    starts = [
        Start("identity", "identity", order or "forward"),
        Start("annealed slowly", "annealed", order or "forward", SLOW),
        Start("annealed fast", "annealed", order or "forward", FAST),
    ]
    total = restarts or DEFAULT_DESCENTS
    varied = itertools.product((0.5, 2.0, 0.3, 3.0), (20, 15, 12, 10, 25))
    for n, (hot, sweeps) in zip(
        range(total - len(starts)), itertools.cycle(varied), strict=False
    ):
        starts.append(
            Start(
                f"annealed, variant {n}",
                "annealed",
                visits,
                Schedule(sweeps, hot, 0.05, NOISE),
            )
        )
    return tuple(starts[:total])


def orders(
    order: Order, count: int, sweeps: int, generator: torch.Generator
) -> Iterator[Sequence[int]]:
    """The order of the visits in each sweep."""
    forward = range(count)
    for sweep in range(sweeps):
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
