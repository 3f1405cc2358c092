"""Re-matching the reference to the running model, again and again, each time from the last permutation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_rebasin.errors import BarrierWarning, RebasinError
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.lightning_probe import copy_with_trainer
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.matching import match_weights
from lightning_rebasin.symmetry import (
    Example,
    Permutation,
    PermutationSpec,
    check_equivalence,
    infer_spec,
    measure_equivalence,
)
from lightning_rebasin.symmetry.edit.restrict import restrict
from lightning_rebasin.symmetry.run.lightning import few
from lightning_rebasin.symmetry.trace.batch_example import batch_example

#: So many samples of a batch are enough to run a module on.
_SAMPLES = 8


class Aligner:
    """Keeps the spec and the last permutation.

    Args:
        spec: The spec, its file, or ``None`` to infer it from the module.
        seed: Seeds the matching.
    """

    def __init__(
        self, spec: str | Path | PermutationSpec | None, seed: int
    ) -> None:
        self._given = spec
        self._spec: PermutationSpec | None = None
        self._seed = seed
        self._last: Permutation | None = None
        self._saved: Mapping[str, Tensor] | None = None

    def check(self, module: LightningModule) -> None:
        """Find the spec, before training starts; without any example input it waits for the first batch.

        Raises:
            SpecError: The file is not a spec.
            StateDictError: The spec belongs to another architecture.
            EquivalenceError: Permuting the module as the spec says changes its function.
        """
        example = getattr(module, "example_input_array", None)
        if self._spec is None and (
            example is not None or self._given is not None
        ):
            self._check(module, () if example is not None else None)

    def look(self, module: LightningModule, batch: Any) -> None:
        """Find the spec with a validation batch, if nothing else was there to run the module on.

        Args:
            module: The module.
            batch: On the module's device; cloned by the caller if it matters.

        Raises:
            TraceError: Neither ``forward`` nor ``validation_step`` runs on the batch.
            EquivalenceError: Permuting the module changes its function.
        """
        if self._spec is None:
            with isolated_rng():
                example = batch_example(
                    copy_with_trainer(module), few(batch, _SAMPLES)
                )
            self._check(module, (example,))

    def _check(
        self, module: LightningModule, example: tuple[Example, ...] | None
    ) -> None:
        """Load or infer the spec, and prove it if there is something to run."""
        if isinstance(self._given, PermutationSpec):
            spec = self._given
        elif self._given is not None:
            spec = PermutationSpec.load(self._given)
        else:
            # On a copy: a forward pass in training mode would move batch-norm statistics and random generators.
            with isolated_rng():
                spec = infer_spec(copy_with_trainer(module), *(example or ()))
        spec.check_state(weights_of(module), "the module")
        if example is not None:
            self._prove(module, spec, example)
        self._spec = spec

    def _prove(
        self,
        module: LightningModule,
        spec: PermutationSpec,
        example: tuple[Example, ...],
    ) -> None:
        """Refuse a spec that changes the function: a barrier to another network would look like a result."""
        permutation = Permutation.random(
            spec, torch.Generator().manual_seed(self._seed)
        )
        with isolated_rng():
            copy = copy_with_trainer(module)
            result = measure_equivalence(copy, permutation, *example)
            if not result.equal:
                check_equivalence(
                    copy, permutation, *example
                )  # finds out which tensor is to blame, and raises
        if not result.sees and not permutation.is_identity:
            warnings.warn(
                "LossBarrier could not prove the symmetries of the module: its output does not depend on the example "
                "input (an example_input_array of zeros?); real values there make the proof possible",
                BarrierWarning,
                stacklevel=2,
            )

    def align(
        self,
        trainer: Trainer,
        live: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
    ) -> Permutation:
        """The permutation that brings ``reference`` nearest to ``live``; process 0 decides for all.

        Raises:
            RebasinError: The matching failed, on every process.
        """
        assert self._spec is not None
        spec = self._spec.pin_identical_buffers(live, reference)
        if self._last is None and self._saved is not None:
            self._last = Permutation(spec, self._saved)
        start = (
            None
            if self._last is None
            else restrict(self._last, self._last.spec, spec)
        )
        answer: tuple[dict[str, Tensor] | None, RebasinError | None] = (
            None,
            None,
        )
        if trainer.is_global_zero:
            try:
                found = match_weights(
                    spec, live, reference, seed=self._seed, init=start
                ).permutation
                answer = (dict(found.orders), None)
            except RebasinError as error:
                # Told to everybody: the other processes wait in the broadcast.
                answer = (None, error)
        orders, failure = trainer.strategy.broadcast(answer)
        if failure is not None:
            raise failure
        self._last = Permutation(spec, orders or {})
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """The last permutation."""
        return {
            "orders": dict(self._last.orders) if self._last else self._saved
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._saved = state["orders"]
        self._last = None


def share_moved(permutation: Permutation) -> float:
    """Fraction of all units of a network that change place."""
    groups = permutation.spec.groups.values()
    total = sum(group.members for group in groups)
    return sum(
        permutation.moved[group.id] * group.members for group in groups
    ) / max(total, 1)
