"""Re-matching the reference to the running model, again and again, each time from the last transform.

Permutations leave the model as it is.  Other kinds compare both networks in canonical gauge, so there the curve begins
at the model in that gauge, a private copy of its weights that computes the same function.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_rebasin.callbacks.trainer import TrainerProcesses
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    DataError,
    RebasinError,
)
from lightning_rebasin.landscape.batches import clone_batch
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.lightning_probe import copy_with_trainer
from lightning_rebasin.landscape.pair import Pair, closest
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.matching import match_weights
from lightning_rebasin.symmetry import (
    Example,
    PermutationSpec,
    Transform,
    check_equivalence,
    infer_spec,
    measure_equivalence,
)
from lightning_rebasin.symmetry.actions.kinds import PERMUTATION, chosen_kinds
from lightning_rebasin.symmetry.edit.restrict import restrict
from lightning_rebasin.symmetry.run.lightning import few
from lightning_rebasin.symmetry.trace.batch_example import batch_example

#: So many samples of a batch are enough to run a module on.
_SAMPLES = 8


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the reference was matched.

    Args:
        transform: Brings the reference near to the model.
        model: The weights of the model in the gauge in which they are compared; its own for permutations.
        method: ``"weight"``, ``"activation"`` or ``"correlation"``.
        scores: If several methods competed, the distance of each one's midpoint.
    """

    transform: Transform
    model: Mapping[str, Tensor]
    method: str
    scores: Mapping[str, float] = field(default_factory=dict)


class Aligner:
    """Keeps the spec and the last transform.

    Args:
        spec: The spec, its file, or ``None`` to infer it from the module.
        seed: Seeds the matching.
        methods: Ways to match; of several the one with the best midpoint is kept.
        kinds: Which kinds of symmetry to look for if the spec is inferred.

    Raises:
        SpecError: ``kinds`` names something else.
    """

    def __init__(
        self,
        spec: str | Path | PermutationSpec | None,
        seed: int,
        methods: Sequence[str] = ("weight",),
        kinds: str | Iterable[str] = PERMUTATION,
    ) -> None:
        self._given = spec
        self._spec: PermutationSpec | None = None
        self._seed = seed
        self._methods = tuple(methods)
        self._kinds = chosen_kinds(kinds)
        # What the spec was traced with, and what runs on a training batch.
        self._traced: str | None = None
        self._method: str | None = None
        self._last: Transform | None = None
        self._saved: Mapping[str, Tensor] | None = None

    @property
    def needs_batches(self) -> bool:
        """Whether training batches are needed to match."""
        return self._methods != ("weight",)

    def check(self, module: LightningModule) -> None:
        """Find the spec, before training starts; without any example input it waits for the first batch.

        Raises:
            SpecError: The file is not a spec.
            StateDictError: The spec belongs to another architecture.
            EquivalenceError: Permuting the module as the spec says changes its function.
            ConfigurationError: Activations are to be compared, but the spec does not say where units can be seen.
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
                spec = infer_spec(
                    copy_with_trainer(module),
                    *(example or ()),
                    kinds=self._kinds,
                )
        spec.check_state(weights_of(module), "the module")
        if self.needs_batches and spec.groups and not spec.activations:
            raise ConfigurationError(
                "the given spec does not say where units can be seen, which matching by activations needs: make it "
                "with infer_spec, leave spec= out, or choose matching='weight'"
            )
        if example is not None:
            self._prove(module, spec, example)
        self._spec = spec
        self._traced = example[0].method if example else "forward"

    def _prove(
        self,
        module: LightningModule,
        spec: PermutationSpec,
        example: tuple[Example, ...],
    ) -> None:
        """Refuse a spec that changes the function: a barrier to another network would look like a result."""
        element = Transform.random(
            spec, torch.Generator().manual_seed(self._seed)
        )
        with isolated_rng():
            copy = copy_with_trainer(module)
            result = measure_equivalence(copy, element, *example)
            if not result.equal:
                check_equivalence(
                    copy, element, *example
                )  # finds out which tensor is to blame, and raises
        if not result.sees and not element.is_identity:
            warnings.warn(
                "LossBarrier could not prove the symmetries of the module: its output does not depend on the example "
                "input (an example_input_array of zeros?); real values there make the proof possible",
                BarrierWarning,
                stacklevel=2,
            )

    def align(
        self,
        trainer: Trainer,
        module: LightningModule,
        reference: Mapping[str, Tensor],
        batches: Sequence[Any] = (),
    ) -> Alignment:
        """The transform that brings ``reference`` nearest to the module; process 0 decides for all.

        Args:
            trainer: The trainer.
            module: The running model.
            reference: Weights on its device.
            batches: Training batches of this process, if activations are to be compared.

        Raises:
            RebasinError: The matching failed, on every process.
        """
        live = weights_of(module)
        if self.needs_batches:
            with TrainerProcesses(trainer).together():
                self._find_method(module, batches)
        assert self._spec is not None
        spec = self._spec.pin_identical_buffers(live, reference)
        if any(g.kind != PERMUTATION for g in spec.groups.values()):
            live = spec.canonicalise(live)
        found: dict[str, Transform] = {}
        scores: dict[str, float] = {}
        if "weight" in self._methods:
            found["weight"] = self._by_weights(trainer, spec, live, reference)
        if self.needs_batches:
            pair = self._pair(trainer, module, live, reference)
            by_activations = [m for m in self._methods if m != "weight"]
            found.update(pair.match(spec, batches, by_activations))
            found = _of_process_zero(trainer, spec, found)
            if len(found) > 1:
                scores = pair.distances(found, batches)
        # Sums over processes may be rounded differently on each.
        scores = trainer.strategy.broadcast(scores) if scores else {}
        chosen = closest(scores) if scores else self._methods[0]
        self._last = found[chosen]
        return Alignment(found[chosen], live, chosen, scores)

    def _find_method(
        self, module: LightningModule, batches: Sequence[Any]
    ) -> None:
        """Find out what runs on a training batch; where that is not what was traced, trace again."""
        if self._method is not None:
            return
        if not batches:
            raise DataError("no training batches to compare activations on")
        batch = few(clone_batch(batches[0]), _SAMPLES)
        with isolated_rng():
            example = batch_example(copy_with_trainer(module), batch)
        if self._given is None and example.method != self._traced:
            # Units are found by counting operations, and a step may have others before them.
            self._check(module, (example,))
        self._method = example.method

    def _pair(
        self,
        trainer: Trainer,
        module: LightningModule,
        live: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
    ) -> Pair:
        """Both ends, ready to run on training batches."""
        return Pair(
            module,
            live,
            reference,
            self._method or "forward",
            context=trainer.precision_plugin.val_step_context,
            processes=TrainerProcesses(trainer),
        )

    def _by_weights(
        self,
        trainer: Trainer,
        spec: PermutationSpec,
        live: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
    ) -> Transform:
        """Weight matching by process 0, from the last transform; collective."""
        if self._last is None and self._saved is not None:
            self._last = Transform.of(spec, self._saved)
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
                ).transform
                answer = (dict(found.elements), None)
            except RebasinError as error:
                # Told to everybody: the other processes wait in the broadcast.
                answer = (None, error)
        elements, failure = trainer.strategy.broadcast(answer)
        if failure is not None:
            raise failure
        return Transform.of(spec, elements or {})

    def state_dict(self) -> dict[str, Any]:
        """The elements of the last transform."""
        elements = dict(self._last.elements) if self._last else self._saved
        return {"orders": elements}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._saved = state["orders"]
        self._last = None


def _of_process_zero(
    trainer: Trainer, spec: PermutationSpec, found: Mapping[str, Transform]
) -> dict[str, Transform]:
    """What process 0 found, on every process; collective."""
    elements = {name: dict(t.elements) for name, t in found.items()}
    elements = trainer.strategy.broadcast(elements)
    return {name: Transform.of(spec, own) for name, own in elements.items()}


def share_moved(transform: Transform) -> float:
    """Fraction of all units of a network that change place; of other kinds how far they are from the identity."""
    groups = transform.spec.groups.values()
    total = sum(group.members for group in groups)
    return sum(
        transform.moved[group.id] * group.members for group in groups
    ) / max(total, 1)
