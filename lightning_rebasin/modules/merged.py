"""What a MergeModule found: the transform of the source, the merged weights, and a file of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from lightning_rebasin.checkpoints.provenance import kinds_of
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.elements import LearnedElements
from lightning_rebasin.modules.endpoints import Endpoints, Weights
from lightning_rebasin.modules.export import export_merged
from lightning_rebasin.modules.midpoint_loss import (
    LossChoice,
    MidpointLoss,
    inner_loss,
)
from lightning_rebasin.modules.options import MergeOptions
from lightning_rebasin.modules.outer import OuterModule
from lightning_rebasin.modules.scoring import Scoring
from lightning_rebasin.modules.start import InitChoice, Start
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


class MergedModule(OuterModule):
    """Holds both ends, what is learned between them, and the best of it.

    Args:
        model: The network; it is copied, not changed.
        reference: Weights Θ_A.
        source: Weights Θ_B.
        options: How learning goes.
        loss: Where the loss comes from.
        spec: What may be changed, if the user says so.
        init: Where learning starts.
        kinds: Which kinds of symmetry to look for.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: Weights,
        source: Weights,
        *,
        options: MergeOptions,
        loss: LossChoice,
        spec: PermutationSpec | str | Path | None,
        init: InitChoice,
        kinds: str | Iterable[str],
    ) -> None:
        super().__init__(model, inner_loss(loss), None, None)
        self._options = options
        self.ends = Endpoints(self.inner.model, reference, source)
        self._start = Start(self.inner.model, self.ends, spec, init, kinds)
        self._loss = MidpointLoss(
            self.inner, self.ends, without_labels=loss == "outputs"
        )
        self._scoring = Scoring(self._loss, options.score_lam)
        self.free = nn.ParameterList()
        if self._start.only_permutations:
            self.free.extend(
                self.ends.reference[name].clone()
                for name in self.ends.parameters
            )
        #: What is learned instead of ``free`` where there are other kinds than permutations.
        self.elements: LearnedElements | None = None
        #: The permutation of this step, or where the elements started.
        self._current: Transform | None = None

    @property
    def spec(self) -> PermutationSpec:
        """What may be permuted.

        Raises:
            ConfigurationError: It was not given, and there are no example inputs yet to infer it from.
        """
        return self._start.spec

    @property
    def transform(self) -> Transform:
        """The symmetry of the source with the best held-out midpoint; the current one if none was scored.

        Raises:
            ConfigurationError: Nothing was learned or loaded yet.
        """
        found = self._now()
        if self._scoring.best is not None:
            found = self._scoring.best.transform
        if found is None:
            raise ConfigurationError(
                "this MergeModule has no permutation yet: call trainer.fit(merge_module, ...) first"
            )
        return found

    @property
    def permutation(self) -> Permutation:
        """:attr:`transform`, where it is a permutation.

        Raises:
            ConfigurationError: Nothing was learned or loaded yet, or other kinds than permutations were.
        """
        found = self.transform
        if not isinstance(found, Permutation):
            raise ConfigurationError(
                "this MergeModule learns other kinds than permutations: use merge_module.transform"
            )
        return found

    def _now(self) -> Transform | None:
        """The transform of this training step."""
        if self.elements is not None:
            return self.elements.transform()
        return self._current

    def merged_state_dict(self) -> dict[str, Tensor]:
        """The merged network's weights: the midpoint, with the batch-norm statistics that it was scored with.

        Returns:
            Every tensor of the user's network, on the CPU.

        Raises:
            ConfigurationError: Nothing was learned or loaded yet.
        """
        merged = self.ends.midpoint(self.transform, self._options.score_lam)
        if self._scoring.best is not None:
            merged |= self._scoring.best.statistics
        return {name: tensor.detach().cpu() for name, tensor in merged.items()}

    def export(self, path: str | Path, *, force: bool = False) -> None:
        """Prove the transform, then write the merged weights as a checkpoint.

        If the reference was a checkpoint file, its hyper-parameters and names are taken over, so that the merged file
        loads wherever that one does.

        Args:
            path: The file to write; the extension decides the format.
            force: Overwrite an existing file.

        Raises:
            EquivalenceError: The transformed source does not compute the source's function; nothing is written.
            ConfigurationError: Nothing was learned yet, or there are no example inputs to prove it with.
            OutputError: The file exists, or cannot be written.
        """
        best = self._scoring.best
        export_merged(
            path,
            self.inner.model,
            self.ends,
            self.transform,
            self.merged_state_dict(),
            example=self._start.example,
            history={
                "method": "straight-through"
                if self.elements is None
                else "learned",
                "kinds": kinds_of(self.spec),
                "lam": self._options.score_lam,
                "held_out_loss": best.score if best is not None else None,
            },
            force=force,
        )
