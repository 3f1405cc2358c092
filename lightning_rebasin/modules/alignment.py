"""Bringing the ends of a path near to each other before, or while, it is learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.matching.search.weight import match_weights
from lightning_rebasin.modules.examples import ExampleInputs
from lightning_rebasin.modules.fixed_ends import packed, unpacked
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.proof.gate import check_equivalence
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@final
class Aligner:
    """Matches weights, once or again and again.

    Args:
        model: The network, from which the spec is inferred.
        spec: What may be permuted, if the user says so.
        seed: Of the matchings.

    Raises:
        SpecError: The file of the spec cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: PermutationSpec | str | Path | None,
        seed: int,
    ) -> None:
        self._model = model
        self._seed = seed
        self._examples = ExampleInputs(model)
        self._spec = (
            PermutationSpec.load(spec)
            if isinstance(spec, str | Path)
            else spec
        )
        self._proved = False

    @property
    def spec(self) -> PermutationSpec:
        """The spec that was given, or the inferred one.

        Raises:
            ConfigurationError: There are no example inputs to infer it from.
        """
        if self._spec is None:
            args, kwargs = self._examples.arguments
            self._spec = infer_spec(self._model, *args, **kwargs)
        return self._spec

    def match(
        self,
        trainer: Trainer,
        reference: Mapping[str, Tensor],
        source: Mapping[str, Tensor],
        start: Permutation | None = None,
    ) -> Permutation:
        """The permutation that brings a source near, found by the first process and told to the others.

        Args:
            trainer: Runs the module.
            reference: Stays.
            source: Is permuted.
            start: Where to begin; ``None`` tries several starts.

        Raises:
            ConfigurationError: There are no example inputs to infer the spec from.
            EquivalenceError: The network computes something else under a permutation of the spec.
        """
        if self._spec is None:
            self._examples.look_at_data(trainer)
        found: dict[str, Any] | None = None
        # Autocast would round the cost matrices to half precision.
        with (
            torch.no_grad(),
            torch.autocast(_device(reference), enabled=False),
        ):
            if trainer.is_global_zero:
                result = match_weights(
                    self.spec, reference, source, seed=self._seed, init=start
                )
                self._prove(result.permutation)
                found = packed(result.permutation)
        received: Any = trainer.strategy.broadcast(found)
        return unpacked(received)

    def _prove(self, permutation: Permutation) -> None:
        """Refuse a spec that changes the function; what proves it once proves it for all matchings.

        A given spec without example inputs is taken on trust: there is nothing to run.
        """
        if self._proved or permutation.is_identity:
            return
        if self._examples.known:
            args, kwargs = self._examples.arguments
            with isolated_rng():
                check_equivalence(self._model, permutation, *args, **kwargs)
        self._proved = True


def _device(state: Mapping[str, Tensor]) -> str:
    return next(iter(state.values())).device.type
