"""Where a MergeModule starts: its spec, example inputs to prove it with, and the transforms that learning begins at."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, final, get_args

from lightning.pytorch import Trainer
from torch import nn

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.matching.activation import match_activations
from lightning_rebasin.matching.search.weight import match_weights
from lightning_rebasin.merging.processes import Total, alone
from lightning_rebasin.modules.batches import first_batches
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.examples import ExampleInputs
from lightning_rebasin.symmetry.actions.kinds import PERMUTATION, chosen_kinds
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.edit.restrict import restrict
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

_ACTIVATION_BATCHES = 20
#: Where learning starts.
InitChoice = Literal["best", "identity", "activations"] | Transform


@final
class Start:
    """Finds the spec and the transforms that learning may start from.

    Args:
        model: The network; its own weights are overwritten.
        ends: The weights of both ends.
        spec: What may be permuted, if the user says so.
        init: ``"best"``, ``"identity"``, ``"activations"`` or a permutation or other transform.
        kinds: Which kinds of symmetry to look for.

    Raises:
        ConfigurationError: ``init`` is something else.
        SpecError: The file of the spec cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        ends: Endpoints,
        spec: PermutationSpec | str | Path | None,
        init: InitChoice,
        kinds: str | Iterable[str] = PERMUTATION,
    ) -> None:
        words = get_args(get_args(InitChoice)[0])
        if not isinstance(init, Transform) and init not in words:
            known = ", ".join(map(repr, words))
            raise ConfigurationError(
                f"init={init!r} is unknown; choose {known}, a Permutation or a Transform"
            )
        self._kinds = chosen_kinds(kinds)
        self._model = model
        self._ends = ends
        self._init = init
        self._examples = ExampleInputs(model)
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
        return self._examples.arguments

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
                self._ends.write_reference(self._model),
                *args,
                kinds=self._kinds,
                **kwargs,
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
        """Take example inputs from the first batch where that is possible."""
        self._examples.look_at_data(trainer)

    @property
    def only_permutations(self) -> bool:
        """Whether the spec, or what is known of it so far, permits nothing else."""
        if self._spec is None:
            return self._kinds == {PERMUTATION}
        groups = self._spec.groups.values()
        return all(group.kind == PERMUTATION for group in groups)

    @property
    def matches(self) -> bool:
        """Whether the starts are the result of some matching, and so candidates for the result of learning."""
        return self._init != "identity"

    def transforms(
        self, trainer: Trainer, total: Total = alone
    ) -> list[Transform]:
        """Where learning may start; collective.

        Args:
            trainer: Its training data decide when activations do.
            total: Sums a tensor over processes, each of which has batches of its own.

        Raises:
            ConfigurationError: There are no data to compare activations on.
        """
        if isinstance(self._init, Transform):
            pinned = self.spec
            start = restrict(self._init, self._unpinned or pinned, pinned)
            return [Transform.of(pinned, start.elements)]
        if self._init == "identity" or trainer.ckpt_path is not None:
            return [Transform.identity(self.spec)]
        batches = first_batches(trainer, _ACTIVATION_BATCHES)
        if self._init == "activations":
            if not batches:
                raise ConfigurationError(
                    "init='activations' needs training data: pass a data module to trainer.fit"
                )
            return [self._by_activations(batches, total)]
        by_weights = match_weights(
            self.spec, self._ends.reference, self._ends.source
        )
        found: list[Transform] = [by_weights.transform]
        seen = self.spec.activations and self._examples.runs_forward
        if batches and seen:
            with suppress(DataError):
                found.append(self._by_activations(batches, total))
        return found

    def _by_activations(self, batches: list[Any], total: Total) -> Transform:
        """Activation matching of both ends."""
        source = self._ends.write_source(copy.deepcopy(self._model))
        reference = self._ends.write_reference(self._model)
        match = match_activations(
            self.spec, reference, source, batches, total=total
        )
        return match.transform
