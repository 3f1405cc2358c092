"""``MergeModule``: learning the permutation that makes the midpoint of two networks good.

Weight matching brings the weights of two networks near to each other, which is not yet what one wants: a low loss at
the midpoint.  A MergeModule looks for that loss directly, with the straight-through estimator
(:mod:`lightning_rebasin.matching.straight_through`), as an ordinary LightningModule, so that optimizers, schedulers,
precision, clipping, early stopping, checkpoints and several processes are the trainer's business.

One training step:

1. project the free parameters onto the permutations of the source (weight matching, warm-started);
2. compute the user's own training loss at ``(1 − λ)·reference + λ·permuted source``;
3. pass its gradient to the free parameters as if the projection were the identity.

Validation scores the short-listed permutations on held-out data; the best score ever seen decides
(:mod:`lightning_rebasin.modules.candidates`).

Batch norm: the training loss uses the statistics of the batch, as in ordinary training.  Before a midpoint is scored,
its running statistics are re-estimated, as cumulative averages over the last training batches: those of the two ends
do not fit the midpoint, whatever the permutation.  The winner's statistics are part of the merged weights.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.matching.straight_through import (
    Projection,
    Projector,
    StandsFor,
    straight_through_point,
)
from lightning_rebasin.merging.statistics import batch_norms
from lightning_rebasin.modules.batches import first_batches
from lightning_rebasin.modules.candidates import (
    Candidate,
    Score,
    Shortlist,
    changed_fraction,
    estimate_statistics,
)
from lightning_rebasin.modules.elements import LearnedElements, best_start
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.inner import LossFunction
from lightning_rebasin.modules.options import MergeOptions
from lightning_rebasin.modules.outer import OuterModule
from lightning_rebasin.modules.start import Start
from lightning_rebasin.symmetry.actions.kinds import PERMUTATION
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.proof.gate import check_equivalence
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

_STATE = "lightning_rebasin_merge"
#: Batches on which the starts of learned elements are compared.
_START_BATCHES = 8


class MergeModule(OuterModule):
    """Learns a permutation of ``source`` for which the midpoint between it and ``reference`` has a low loss.

    ``trainer.fit(merge_module, datamodule)`` with the data that the networks were trained on is all there is to write.
    Logged: ``midpoint_loss`` (training), ``objective`` (inner product of the projection), ``moved`` (fraction of the
    units that the last projection moved), ``projection_seconds``, ``val_midpoint_loss`` (current permutation, held
    out), ``best_midpoint_loss`` (lowest so far), and whatever the network's own ``training_step`` logs, under
    ``midpoint/``.

    Args:
        model: The network; its ``training_step`` is the loss unless ``loss`` is given.  It is copied, not changed.
        reference: Weights Θ_A that stay as they are: a checkpoint's path or a state dict.
        source: Weights Θ_B whose units are permuted.
        spec: What may be permuted: a spec or its path; ``None`` infers it from ``example_input_array`` or, failing
            that, from the first training batch.
        loss: Takes the network and a batch and returns a scalar; ``None`` means ``model.training_step``.
        optimizer: Makes the optimizer of the free parameters; ``None`` is the paper's SGD, lr 0.01, momentum 0.9.
        lr_scheduler: Makes a learning-rate scheduler from the optimizer.
        lam: Where the loss is taken: a number in (0, 1), or an interval from which every step draws λ.
        stands_for: Whether the free parameters stand for the permuted source or for the midpoint.
        projection: Whether they are projected by inner product or by L2 distance; the same for ``"endpoint"``.
        init: The first projection starts from ``"identity"``, from ``"activations"`` (activation matching on the first
            batches) or from a given permutation.  Other kinds start from the better one of weight and activation
            matching, or from a given transform.
        kinds: Which kinds of symmetry to use, as in :func:`~lightning_rebasin.infer_spec`.  With other kinds than
            permutations (``"all"``), rotations, linear maps and scales are learned by gradient descent and the
            permutations of the start stay; the reference is put into canonical gauge, which keeps its function.
        project_every: Optimizer steps from one projection to the next.  More than 1 is *another algorithm*: cheaper,
            and in between the gradient is taken at an outdated permutation.
        batch_norm_batches: Training batches kept for re-estimating batch-norm statistics; unused without batch norm.
        seed: Of the order in which groups are visited and of λ.

    Raises:
        ConfigurationError: An option cannot work.
        StateDictError: The weights do not fit the network or each other.
        CheckpointError: A file cannot be read.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        ...         self.example_input_array = torch.zeros(1, 2)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return (self.net(batch) - 1).square().mean()
        >>> MergeModule(Net(), reference=Net().state_dict(), source=Net().state_dict())
        MergeModule(Net, endpoint projected by inner_product, lam=0.5)

    References:
        Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 2 (arXiv 2209.04836).
    """

    def __init__(
        self,
        model: nn.Module,
        reference: str | Path | Mapping[str, Any],
        source: str | Path | Mapping[str, Any],
        *,
        spec: PermutationSpec | str | Path | None = None,
        loss: LossFunction | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lam: float | tuple[float, float] = 0.5,
        stands_for: StandsFor = "endpoint",
        projection: Projection = "inner_product",
        init: Literal["identity", "activations"] | Transform = "identity",
        kinds: str | Iterable[str] = PERMUTATION,
        project_every: int = 1,
        batch_norm_batches: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(model, loss, optimizer, lr_scheduler)
        # Weights, networks and factories stay out of the hyper-parameters: files must load with weights_only=True.
        self.save_hyperparameters(
            "lam",
            "stands_for",
            "projection",
            "project_every",
            "batch_norm_batches",
            "seed",
        )
        self._options = MergeOptions(
            lam,
            stands_for,
            projection,
            project_every,
            batch_norm_batches,
            seed,
        )
        self.ends = Endpoints(self.inner.model, reference, source)
        self._start = Start(self.inner.model, self.ends, spec, init, kinds)
        self.free = nn.ParameterList(
            self.ends.reference[name].clone() for name in self.ends.parameters
        )
        #: What is learned instead of ``free`` where there are other kinds than permutations.
        self.elements: LearnedElements | None = None
        if not self._start.only_permutations:
            self.free = nn.ParameterList()
        self._recent: deque[Any] = deque(
            maxlen=batch_norm_batches if batch_norms(self.inner) else 0
        )
        self._current: Transform | None = None
        self._best: Candidate | None = None
        self._projector: Projector | None = None
        self._projected_at: int | None = None
        self._shortlist = Shortlist()
        self._scores: list[Score] = []

    def __repr__(self) -> str:
        name, options = type(self.inner.model).__name__, self._options
        return f"MergeModule({name}, {options.stands_for} projected by {options.projection}, lam={options.lam})"

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
        if self._best is not None:
            found = self._best.transform
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
        if self._best is not None:
            merged |= self._best.statistics
        return {name: tensor.detach().cpu() for name, tensor in merged.items()}

    def export(self, path: str | Path, *, force: bool = False) -> None:
        """Prove the permutation, then write the merged weights as a checkpoint.

        If the reference was a checkpoint file, its hyper-parameters and names are taken over, so that the merged file
        loads wherever that one does.

        Args:
            path: The file to write; the extension decides the format.
            force: Overwrite an existing file.

        Raises:
            EquivalenceError: The permuted source does not compute the source's function; nothing is written.
            ConfigurationError: Nothing was learned yet, or there are no example inputs to prove it with.
            OutputError: The file exists, or cannot be written.
        """
        transform = self.transform
        args, kwargs = self._start.example
        error = check_equivalence(
            self.ends.write_source(self.inner.model),
            transform,
            *args,
            **kwargs,
        )
        like = (
            read_checkpoint(self.ends.reference_path)
            if self.ends.reference_path is not None
            else None
        )
        history = {
            "method": "straight-through"
            if self.elements is None
            else "learned",
            "lam": self._options.score_lam,
            "held_out_loss": self._best.score
            if self._best is not None
            else None,
            "equivalence_error": error,
            "permutation": dict(transform.elements),
        }
        write_checkpoint(
            path,
            self.merged_state_dict(),
            like=like,
            provenance=history,
            force=force,
        )

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Infer the spec if needed, and decide where the first projection starts."""
        self.inner.attach(self.trainer, self._log_inner)
        self._start.look_at_data(self.trainer)
        if self._current is not None:
            return
        if self._start.only_permutations:
            self._current = self._start.permutation(self.trainer)
            return
        self.ends.use_gauge(self.spec)
        starts = self._start.transforms(self.trainer)
        batches = first_batches(self.trainer, _START_BATCHES)
        # Every process must start from the same elements; the first one says which.
        best = best_start(self.inner, self.ends, starts, batches)
        told: Any = self.trainer.strategy.broadcast(dict(best.elements))
        self._current = Transform.of(self.spec, told)
        self._shortlist.start_from(*starts)
        self.elements = LearnedElements(self.spec, self._current)

    def on_fit_start(self) -> None:
        """Put both ends where the trainer put the network."""
        self._place()

    def on_validation_start(self) -> None:
        """The same, for ``trainer.validate`` alone."""
        if self.trainer.state.fn != "fit":
            # Tensors made under the trainer's inference mode could not be trained with later.
            with torch.inference_mode(mode=False):
                self._place()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Project, then compute the loss on the segment with a straight-through gradient."""
        self._recent.append(batch)
        lam = self._options.draw_lam(self.global_step, batch_idx)
        if self.elements is not None:
            return self._elements_step(self.elements, lam, batch, batch_idx)
        permutation = self._project()
        free = dict(zip(self.ends.parameters, self.free, strict=True))
        aligned, reference = self.ends.align(permutation), self.ends.reference
        point = straight_through_point(
            free, aligned, reference, lam, self._options.stands_for
        )
        loss = self.inner.loss_at(
            self.ends.buffers(permutation, lam) | point, batch, batch_idx
        )
        self._shortlist.offer(
            permutation, float(self.mean_over_processes(loss.detach()))
        )
        self._log_loss(loss, batch)
        return loss

    def _elements_step(
        self,
        elements: LearnedElements,
        lam: float,
        batch: Any,
        batch_idx: int,
    ) -> Tensor:
        """The loss on the segment to the source under the elements that are being learned."""
        started = self.ends.align(elements.start)
        # Autocast would round the inverses and exponentials to half precision.
        with torch.autocast(self.device.type, enabled=False):
            aligned = elements.aligned(
                {name: started[name] for name in self.ends.parameters}
            )
            point = {}
            for name, tensor in aligned.items():
                point[name] = torch.lerp(
                    self.ends.reference[name], tensor, lam
                )
        loss = self.inner.loss_at(
            self.ends.buffers(elements.start, lam) | point, batch, batch_idx
        )
        self._log_loss(loss, batch)
        return loss

    def _log_loss(self, loss: Tensor, batch: Any) -> None:
        self.log(
            "midpoint_loss",
            loss,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=batch_size(batch),
        )

    def default_optimizer(
        self, parameters: list[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """The paper's SGD for permutations, Adam with lr 0.01 for other kinds."""
        if self.elements is None:
            return super().default_optimizer(parameters)
        return torch.optim.Adam(parameters, lr=0.01)

    def on_validation_epoch_start(self) -> None:
        """Prepare the midpoint of every candidate."""
        now = self._now()
        assert now is not None
        self._scores = []
        with torch.inference_mode(mode=False), torch.no_grad():
            for permutation in self._shortlist.candidates(now):
                weights = self.ends.midpoint(
                    permutation, self._options.score_lam
                )
                statistics = estimate_statistics(
                    self.inner,
                    self.ends.callable_weights(weights),
                    self._recent,
                )
                statistics = {
                    n: self.mean_over_processes(t)
                    if t.is_floating_point()
                    else t
                    for n, t in statistics.items()
                }
                candidate = Candidate(permutation, statistics=statistics)
                self._scores.append(
                    Score(
                        self.inner,
                        candidate,
                        self.ends.callable_weights(weights | statistics),
                    )
                )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one held-out batch to the score of every candidate."""
        for score in self._scores:
            score.update(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Keep the best candidate."""
        scored = [
            score.finish(self.sum_over_processes) for score in self._scores
        ]
        self._scores = []
        if (
            self.trainer.sanity_checking
        ):  # too few batches to be compared with the scores to come
            return
        self._shortlist.clear()
        known = [self._best] if self._best is not None else []
        self._best = min(
            [*known, *scored], key=lambda candidate: candidate.score
        )
        # Already the same on every process.
        self.log(
            "val_midpoint_loss",
            scored[0].score,
            prog_bar=True,
            sync_dist=False,
        )
        self.log("best_midpoint_loss", self._best.score, sync_dist=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the permutations: LongTensors, which load with ``weights_only=True``."""
        checkpoint[_STATE] = {
            "current": Candidate(self._current).to_state()
            if self._current is not None
            else None,
            "learned": self.elements is not None,
            "best": self._best.to_state() if self._best is not None else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the permutations up again.

        Raises:
            ConfigurationError: The file was not written by a MergeModule.
        """
        if _STATE not in checkpoint:
            raise ConfigurationError(
                "this checkpoint was not written by a MergeModule: it holds no permutations"
            )
        current, best = (
            checkpoint[_STATE][name] for name in ("current", "best")
        )
        self._current = (
            Candidate.from_state(self.spec, current).transform
            if current
            else None
        )
        if self._current is not None and checkpoint[_STATE].get("learned"):
            # The latents follow with the state dict; they stand for steps from here.
            self.ends.use_gauge(self.spec)
            self.elements = LearnedElements(self.spec, self._current)
        self._best = Candidate.from_state(self.spec, best) if best else None

    def _place(self) -> None:
        self.check_precision()
        self.ends.place(self.inner.model)
        self._projector = None

    def _project(self) -> Permutation:
        """Project unless the free parameters have not moved since the last time; log what happened."""
        assert isinstance(self._current, Permutation)
        step, before = self.global_step, self._current
        if step == self._projected_at or step % self._options.project_every:
            return before
        started = time.perf_counter()
        # Autocast would round the cost matrices to half precision.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            result = (
                self._project_on_rank_zero(step, before)
                if self.trainer.is_global_zero
                else None
            )
        received: Any = self.trainer.strategy.broadcast(result)
        orders, objective = received
        self._current = Permutation(self.spec, orders)
        if self._projected_at is None:
            self._shortlist.start_from(self._current)
        self._projected_at = step
        self.log("objective", objective)
        self.log("moved", changed_fraction(before, self._current))
        self.log("projection_seconds", time.perf_counter() - started)
        return self._current

    def _project_on_rank_zero(
        self, step: int, start: Permutation
    ) -> tuple[dict[str, Tensor], float]:
        options = self._options
        if self._projector is None:
            self._projector = Projector(
                self.spec,
                self.ends.reference,
                self.ends.source,
                stands_for=options.stands_for,
                projection=options.projection,
                init=start,
                seed=options.seed,
                device=self.device,
            )
        result = self._projector.project(
            dict(zip(self.ends.parameters, self.free, strict=True)), step
        )
        return dict(result.permutation.orders), result.objective

    def _log_inner(
        self, name: str, value: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Where the network's own log calls go: scoring evaluates several midpoints, so only training is logged."""
        if self.trainer.training:
            self.log(f"midpoint/{name}", value, *args, **kwargs)
