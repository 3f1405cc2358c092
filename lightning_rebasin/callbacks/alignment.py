"""Re-matching the reference to the running model, again and again, each time from the last permutation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_rebasin.errors import BarrierWarning, ConfigurationError, RebasinError
from lightning_rebasin.landscape.probe import copy_module, isolated_rng
from lightning_rebasin.landscape.segment import weights_of
from lightning_rebasin.matching import match_weights
from lightning_rebasin.symmetry import Permutation, PermutationSpec, check_equivalence, infer_spec, measure_equivalence


class Aligner:
    """Keeps the spec and the last permutation.

    Args:
        spec: The spec, its file, or ``None`` to infer it from the module.
        seed: Seeds the matching.
    """

    def __init__(self, spec: str | Path | PermutationSpec | None, seed: int) -> None:
        self._given = spec
        self._spec: PermutationSpec | None = None
        self._seed = seed
        self._last: Permutation | None = None
        self._saved: Mapping[str, Tensor] | None = None

    def check(self, module: LightningModule) -> None:
        """Find the spec, before training starts.

        Raises:
            ConfigurationError: It has to be inferred, but there is no example input.
            SpecError: The file is no spec.
            StateDictError: The spec belongs to another architecture.
            EquivalenceError: Permuting the module as the spec says changes its function.
        """
        if self._spec is None:
            spec = self._find(module)
            spec.check_state(weights_of(module), "the module")
            if getattr(module, "example_input_array", None) is not None:
                self._prove(module, spec)
            self._spec = spec

    def _prove(self, module: LightningModule, spec: PermutationSpec) -> None:
        """Refuse a spec that changes the function: a barrier to another network would look like a result."""
        permutation = Permutation.random(spec, torch.Generator().manual_seed(self._seed))
        with isolated_rng():
            copy = copy_module(module)
            result = measure_equivalence(copy, permutation)
            if not result.equal:
                check_equivalence(copy, permutation)  # finds out which tensor is to blame, and raises
        if not result.sees and not permutation.is_identity:
            warnings.warn(
                "LossBarrier could not prove the symmetries of the module: its output does not depend on "
                "example_input_array (all zeros?); real values there make the proof possible",
                BarrierWarning,
                stacklevel=2,
            )

    def _find(self, module: LightningModule) -> PermutationSpec:
        if isinstance(self._given, PermutationSpec):
            return self._given
        if self._given is not None:
            return PermutationSpec.load(self._given)
        if getattr(module, "example_input_array", None) is None:
            raise ConfigurationError(
                "matching needs to run the model once to find its symmetries: set self.example_input_array in the "
                "LightningModule, or pass spec=, or use matching='none'"
            )
        # On a copy: a forward pass in training mode would move batch-norm statistics and random generators.
        with isolated_rng():
            return infer_spec(copy_module(module))

    def align(self, trainer: Trainer, live: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Permutation:
        """The permutation that brings ``reference`` nearest to ``live``; process 0 decides for all.

        Raises:
            RebasinError: The matching failed, on every process.
        """
        assert self._spec is not None
        if self._last is None and self._saved is not None:
            self._last = Permutation(self._spec, self._saved)
        answer: tuple[dict[str, Tensor] | None, RebasinError | None] = (None, None)
        if trainer.is_global_zero:
            try:
                found = match_weights(self._spec, live, reference, seed=self._seed, init=self._last).permutation
                answer = (dict(found.orders), None)
            except RebasinError as error:
                # Told to everybody: the other processes wait in the broadcast.
                answer = (None, error)
        orders, failure = trainer.strategy.broadcast(answer)
        if failure is not None:
            raise failure
        self._last = Permutation(self._spec, orders or {})
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """The last permutation."""
        return {"orders": dict(self._last.orders) if self._last else self._saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._saved = state["orders"]
        self._last = None


def share_moved(permutation: Permutation) -> float:
    """Fraction of all units of a network that change place."""
    groups = permutation.spec.groups.values()
    total = sum(group.members for group in groups)
    return sum(permutation.moved[group.id] * group.members for group in groups) / max(total, 1)
