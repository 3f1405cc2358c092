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

from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.matching.straight_through import (
    Projection as ProjectionChoice,
)
from lightning_rebasin.matching.straight_through import (
    StandsFor,
)
from lightning_rebasin.merging.statistics import batch_norms
from lightning_rebasin.modules.batches import first_batches, held_out_batches
from lightning_rebasin.modules.best_start import best_start
from lightning_rebasin.modules.candidates import Candidate
from lightning_rebasin.modules.elements import LearnedElements
from lightning_rebasin.modules.merged import MergedModule
from lightning_rebasin.modules.midpoint_loss import (
    LossChoice,
)
from lightning_rebasin.modules.options import MergeOptions
from lightning_rebasin.modules.projection import FreeParameters, Projection
from lightning_rebasin.modules.schedules import half_cosine
from lightning_rebasin.modules.start import InitChoice
from lightning_rebasin.symmetry.actions.kinds import PERMUTATION
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

_STATE = "lightning_rebasin_merge"
#: Held-out batches on which the starts are compared.
_START_BATCHES = 8


class MergeModule(MergedModule):
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
        loss: Takes the network and a batch and returns a scalar; ``None`` means ``model.training_step``; ``"outputs"``
            needs no labels: the distance of the network's outputs at λ to the mix of the ends' outputs.
        optimizer: Makes the optimizer of the free parameters; ``None`` is the paper's SGD, lr 0.01, momentum 0.9, and
            Adam, lr 0.01, that ends at 0, for other kinds than permutations.
        lr_scheduler: Makes a learning-rate scheduler from the optimizer.
        lam: Where the loss is taken: a number in (0, 1), or an interval from which every step draws λ.
        stands_for: Whether the free parameters stand for the permuted source or for the midpoint.
        projection: Whether they are projected by inner product or by L2 distance; the same for ``"endpoint"``.
        init: Where learning starts: ``"best"``, the better one on held-out data of weight matching and activation
            matching on the first batches, both of which stay among the candidates for the result; one of them,
            ``"activations"``; ``"identity"``, as in the paper; or a given permutation or transform.
        kinds: Which kinds of symmetry to use, as in :func:`~lightning_rebasin.infer_spec`.  With other kinds than
            permutations (``"all"``), rotations, linear maps and scales are learned by gradient descent, and the
            permutations straight through beside them; the reference is put into canonical gauge, which keeps its
            function.
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
        loss: LossChoice = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lam: float | tuple[float, float] = 0.5,
        stands_for: StandsFor = "endpoint",
        projection: ProjectionChoice = "inner_product",
        init: InitChoice = "best",
        kinds: str | Iterable[str] = PERMUTATION,
        project_every: int = 1,
        batch_norm_batches: int = 20,
        seed: int = 0,
    ) -> None:
        options = MergeOptions(
            lam,
            stands_for,
            projection,
            project_every,
            batch_norm_batches,
            seed,
        )
        super().__init__(
            model,
            reference,
            source,
            options=options,
            loss=loss,
            spec=spec,
            init=init,
            kinds=kinds,
        )
        self.use_optimizer(optimizer, lr_scheduler)
        # Weights, networks and factories stay out of the hyper-parameters: files must load with weights_only=True.
        self.save_hyperparameters(
            "lam",
            "stands_for",
            "projection",
            "project_every",
            "batch_norm_batches",
            "seed",
        )
        self._recent: deque[Any] = deque(
            maxlen=batch_norm_batches if batch_norms(self.inner) else 0
        )
        self._projection = Projection(self, options)
        self._free_parameters = FreeParameters(self.ends, options)

    def __repr__(self) -> str:
        name, options = type(self.inner.model).__name__, self._options
        return f"MergeModule({name}, {options.stands_for} projected by {options.projection}, lam={options.lam})"

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Infer the spec if needed, and decide where learning starts."""
        self.inner.attach(self.trainer, self._log_inner)
        self._start.look_at_data(self.trainer)
        if self._current is not None:
            return
        if not self._start.only_permutations:
            self.ends.use_gauge(self.spec)
        starts = self._start.transforms(self.trainer, self.sum_over_processes)
        best = best_start(
            self._loss,
            starts,
            held_out_batches(self.trainer, _START_BATCHES),
            recent=self._statistics_batches(),
            lam=self._options.score_lam,
            total=self.sum_over_processes,
        )
        # Every process must start from the same elements; the first one says which.
        told: Any = self.trainer.strategy.broadcast(
            [dict(start.elements) for start in (best, *starts)]
        )
        self._current, *rivals = (
            Transform.of(self.spec, elements) for elements in told
        )
        if self._start.matches:
            self._scoring.shortlist.start_from(*rivals)
        self._learn_from(self._current)

    def _statistics_batches(self) -> list[Any]:
        """Training batches for the batch norms of a midpoint, before there was any training."""
        if not self._recent.maxlen:
            return []
        return first_batches(self.trainer, self._recent.maxlen)

    def _learn_from(self, start: Transform) -> None:
        """Make what is learned beside permutations, if anything is."""
        if not self._start.only_permutations:
            self.elements = LearnedElements(
                self.spec,
                start,
                self.ends.reference,
                self.ends.align(start),
                self.ends.parameters,
            )

    def on_fit_start(self) -> None:
        """Put both ends where the trainer put the network."""
        self._place()

    def on_validation_start(self) -> None:
        """The same, for ``trainer.validate`` alone."""
        if self.trainer.state.fn != "fit":
            # Tensors made under the trainer's inference mode could not be trained with later.
            with torch.inference_mode(mode=False):
                self._place()

    def _place(self) -> None:
        self.check_precision()
        self.ends.place(self.inner.model)
        self._free_parameters.forget()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Project, then compute the loss on the segment with a straight-through gradient."""
        self._recent.append(batch)
        lam = self._options.draw_lam(self.global_step, batch_idx)
        if self.elements is None:
            weights = self._permuted_point(lam)
        else:
            weights = self._learned_point(self.elements, lam)
        loss = self._loss.of(batch, batch_idx, lam)(weights)
        now = self._now()
        # Continuous elements are new at every step: there the short list holds the last one only.
        if self.elements is None and now is not None:
            mean = float(self.mean_over_processes(loss.detach()))
            self._scoring.shortlist.offer(now, mean)
        self.log(
            "midpoint_loss",
            loss,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=batch_size(batch),
        )
        return loss

    def _permuted_point(self, lam: float) -> dict[str, Tensor]:
        """The weights at λ on the way to the permuted source; the gradient goes to the free parameters."""
        assert isinstance(self._current, Permutation)
        free = dict(zip(self.ends.parameters, self.free, strict=True))
        first = self._projection.is_first
        if self._projection.due:
            before, step = self._current, self.global_step
            self._current = self._projection.project(
                before,
                lambda: self._free_parameters.project(
                    before, free, step, self.device
                ),
            )
        if first:
            self._scoring.shortlist.also_from(self._current)
        return self._free_parameters.point(self._current, free, lam)

    def _learned_point(
        self, elements: LearnedElements, lam: float
    ) -> dict[str, Tensor]:
        """The weights at λ on the way to the source under what is being learned."""
        started = self.ends.align(elements.start)
        # Autocast would round the inverses and exponentials to half precision.
        with torch.autocast(self.device.type, enabled=False):
            moved = elements.moved(started)
            orders = elements.orders
            steps = self.trainer.estimated_stepping_batches
            moves = orders.move(self.global_step, steps)
            if self._projection.due and moves:
                fixed = {name: t.detach() for name, t in moved.items()}
                seed = self._options.seed + self.global_step
                orders.permutation = self._projection.project(
                    orders.permutation,
                    lambda: orders.project(self.ends.reference, fixed, seed),
                )
            return self.ends.between(orders.permuted(moved), lam)

    def default_optimizer(
        self, parameters: list[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """The paper's SGD for permutations, Adam with lr 0.01 for other kinds."""
        if self.elements is None:
            return super().default_optimizer(parameters)
        return torch.optim.Adam(parameters, lr=0.01)

    def default_scheduler(
        self, optimizer: torch.optim.Optimizer
    ) -> LRScheduler | None:
        """For other kinds than permutations half a cosine, down to 0 at the end of the training if there is one."""
        if self.elements is None:
            return None
        return half_cosine(optimizer, self.trainer.estimated_stepping_batches)

    def on_validation_epoch_start(self) -> None:
        """Prepare the midpoint of every candidate."""
        now = self._now()
        assert now is not None
        self._scoring.begin(now, self._recent, self.mean_over_processes)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one held-out batch to the score of every candidate."""
        self._scoring.update(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Keep the best candidate."""
        scored = self._scoring.finish(self.sum_over_processes)
        # Too few batches to be compared with the scores to come.
        if self.trainer.sanity_checking:
            return
        best = self._scoring.keep(scored)
        # Already the same on every process.
        self.log(
            "val_midpoint_loss",
            scored[0].score,
            prog_bar=True,
            sync_dist=False,
        )
        self.log("best_midpoint_loss", best.score, sync_dist=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the transforms: plain tensors, which load with ``weights_only=True``."""
        best = self._scoring.best
        start = None
        if self._current is not None:
            start = Candidate(self._current).to_state()
        state = {
            "current": start,
            "learned": self.elements is not None,
            "best": best.to_state() if best is not None else None,
        }
        if self.elements is not None:
            state["orders"] = dict(self.elements.orders.permutation.orders)
        checkpoint[_STATE] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the transforms up again.

        Raises:
            ConfigurationError: The file was not written by a MergeModule.
        """
        if _STATE not in checkpoint:
            raise ConfigurationError(
                "this checkpoint was not written by a MergeModule: it holds no permutations"
            )
        state = checkpoint[_STATE]
        current, best = state["current"], state["best"]
        if current:
            self._current = Candidate.from_state(self.spec, current).transform
        if self._current is not None and state.get("learned"):
            # The latents follow with the state dict; they stand for steps from here.
            self.ends.use_gauge(self.spec)
            self._learn_from(self._current)
            assert self.elements is not None
            self.elements.orders.put(state["orders"])
        if best:
            self._scoring.best = Candidate.from_state(self.spec, best)

    def _log_inner(
        self, name: str, value: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Where the network's own log calls go: scoring evaluates several midpoints, so only training is logged."""
        # In ``setup`` starts are compared, with the network in eval mode.
        if self.trainer.training and self.inner.training:
            self.log(f"midpoint/{name}", value, *args, **kwargs)
