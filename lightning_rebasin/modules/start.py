"""Where a MergeModule starts: its spec, example inputs to prove it with, and the first permutation."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.matching.activation import (
    match_activations,
    model_inputs,
)
from lightning_rebasin.modules.batches import example_inputs, first_batches
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.edit.restrict import restrict
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.trace.batch_example import batch_example

_ACTIVATION_BATCHES = 20


@final
class Start:
    """Finds the spec and the permutation that the first projection starts from.

    Args:
        model: The network; its own weights are overwritten.
        ends: The weights of both ends.
        spec: What may be permuted, if the user says so.
        init: ``"identity"``, ``"activations"`` or a permutation.

    Raises:
        ConfigurationError: ``init`` is something else.
        SpecError: The file of the spec cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        ends: Endpoints,
        spec: PermutationSpec | str | Path | None,
        init: Literal["identity", "activations"] | Permutation,
    ) -> None:
        if init not in ("identity", "activations") and not isinstance(
            init, Permutation
        ):
            raise ConfigurationError(
                f"init={init!r} is unknown; choose 'identity', 'activations' or a Permutation"
            )
        self._model = model
        self._ends = ends
        self._init = init
        self._example = example_inputs(model)
        self._spec = (
            PermutationSpec.load(spec)
            if isinstance(spec, str | Path)
            else spec
        )
        self._unpinned: PermutationSpec | None = None

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the network's forward, or a batch for its ``validation_step`` or ``training_step``.

        Raises:
            ConfigurationError: There are none.
        """
        if self._example is None:
            raise ConfigurationError(
                f"no example inputs of {type(self._model).__name__}: set example_input_array on it, or fit first"
            )
        return self._example

    @property
    def spec(self) -> PermutationSpec:
        """The spec that was given, or the inferred one.

        Raises:
            ConfigurationError: There are no example inputs to infer it from.
            StateDictError: The spec given does not fit the weights.
            NonFiniteError: A weight is NaN or infinite.
        """
        if self._spec is None:
            args, kwargs = self.example
            self._spec = infer_spec(
                self._ends.write_reference(self._model), *args, **kwargs
            )
        if self._unpinned is None:
            self._spec.check_state(
                self._ends.reference, "the reference", finite=True
            )
            self._spec.check_state(
                self._ends.source, "the source", finite=True
            )
            self._unpinned = self._spec
            self._spec = self._spec.pin_identical_buffers(
                self._ends.reference, self._ends.source
            )
        return self._spec

    def look_at_data(self, trainer: Trainer) -> None:
        """Take example inputs from the first batch: always if there are none, else where they look the same.

        Real inputs prove more than the zeros that ``example_input_array`` often holds.
        """
        batches = first_batches(trainer, 1)
        if not batches:
            return
        # With neither, the spec must be given; that its absence is an error is said where it is needed.
        with suppress(DataError):
            if self._example is None:
                self._example = (
                    (batch_example(self._model, batches[0], self._inputs),),
                    {},
                )
                return
            found = model_inputs(self._model, batches[0])
            if _look(found) == _look(self._example):
                self._example = found

    def _inputs(self, batch: Any) -> Example:
        return Example(*model_inputs(self._model, batch))

    def permutation(self, trainer: Trainer) -> Permutation:
        """The start of the first projection.

        Args:
            trainer: Its training data decide when activations do.
        """
        if isinstance(self._init, Permutation):
            pinned = self.spec
            return restrict(self._init, self._unpinned or pinned, pinned)
        if self._init == "identity" or trainer.ckpt_path is not None:
            return Permutation.identity(self.spec)
        batches = first_batches(trainer, _ACTIVATION_BATCHES)
        if not batches:
            raise ConfigurationError(
                "init='activations' needs training data: pass a data module to trainer.fit"
            )
        source = self._ends.write_source(copy.deepcopy(self._model))
        reference = self._ends.write_reference(self._model)
        return match_activations(
            self.spec, reference, source, batches
        ).permutation


def _look(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> list[tuple[torch.dtype, torch.Size] | Any]:
    """Dtypes and shapes of the inputs but for the batch dimension."""
    leaves = tree_flatten(arguments)[0]
    return [
        (leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    ]
