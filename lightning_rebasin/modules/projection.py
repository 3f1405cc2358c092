"""Projecting free parameters once per optimizer step: process 0 does it, the others are told.

For a source that only permutes this is the published straight-through estimator.  With other kinds beside them,
:mod:`lightning_rebasin.modules.orders` says what is projected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_rebasin.matching.straight_through import (
    Projector,
    straight_through_point,
)
from lightning_rebasin.modules.candidates import changed_fraction
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.options import MergeOptions
from lightning_rebasin.symmetry.actions.permutation import Permutation

#: The orders of all groups, and the objective.
Projected = tuple[dict[str, Tensor], float]


@final
class Projection:
    """Says when to project, does it on process 0, and logs what happened.

    Args:
        module: The module that logs.
        options: How often.
    """

    def __init__(self, module: LightningModule, options: MergeOptions) -> None:
        self._module = module
        self._options = options
        self._projected_at: int | None = None

    @property
    def due(self) -> bool:
        """Whether the free parameters have moved since the last projection, and it is time for one."""
        step = self._module.global_step
        if step == self._projected_at:
            return False
        return step % self._options.project_every == 0

    @property
    def is_first(self) -> bool:
        """Whether nothing was projected yet."""
        return self._projected_at is None

    def project(
        self, before: Permutation, compute: Callable[[], Projected]
    ) -> Permutation:
        """The new permutation; collective.

        Args:
            before: The last one.
            compute: Finds the orders, on process 0.
        """
        module = self._module
        started = time.perf_counter()
        # Autocast would round the cost matrices to half precision.
        with (
            torch.no_grad(),
            torch.autocast(module.device.type, enabled=False),
        ):
            found = compute() if module.trainer.is_global_zero else None
        received: Any = module.trainer.strategy.broadcast(found)
        orders, objective = received
        after = Permutation(before.spec, orders)
        self._projected_at = module.global_step
        module.log("objective", objective)
        module.log("moved", changed_fraction(before, after))
        module.log("projection_seconds", time.perf_counter() - started)
        return after


@final
class FreeParameters:
    """The published estimator: what is projected where a spec only permutes.

    Args:
        ends: The two ends.
        options: What the free parameters stand for, and how they are projected.
    """

    def __init__(self, ends: Endpoints, options: MergeOptions) -> None:
        self._ends = ends
        self._options = options
        self._projector: Projector | None = None

    def forget(self) -> None:
        """The ends have moved to another device."""
        self._projector = None

    def project(
        self,
        start: Permutation,
        free: Mapping[str, Tensor],
        step: int,
        device: torch.device,
    ) -> Projected:
        """Project the free parameters onto the permutations of the source.

        Args:
            start: Where the first projection starts; later ones start from the last.
            free: The free parameters by name.
            step: Number of the optimizer step.
            device: Where the costs are built.
        """
        options = self._options
        if self._projector is None:
            self._projector = Projector(
                start.spec,
                self._ends.reference,
                self._ends.source,
                stands_for=options.stands_for,
                projection=options.projection,
                init=start,
                seed=options.seed,
                device=device,
            )
        result = self._projector.project(free, step)
        return dict(result.permutation.orders), result.objective

    def point(
        self, permutation: Permutation, free: Mapping[str, Tensor], lam: float
    ) -> dict[str, Tensor]:
        """The weights at λ on the way to the permuted source, with the straight-through gradient.

        Args:
            permutation: The last projection.
            free: The free parameters by name.
            lam: Where on the segment.
        """
        point = straight_through_point(
            free,
            self._ends.align(permutation),
            self._ends.reference,
            lam,
            self._options.stands_for,
        )
        return self._ends.buffers(permutation, lam) | point
