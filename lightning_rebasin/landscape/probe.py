"""Evaluating *other* weights of a module while the module itself is left alone.

The idea: a *probe* is a deep copy of the module.  The weights of one :class:`Point` after the other are written into
the probe, and each batch is evaluated at every point before the next batch is fetched ("batches outside, points
inside": the data are loaded, decoded and moved once, whatever the number of points).

For a LightningModule the evaluation is its own ``validation_step``; whatever it logs is recorded instead of reaching
the trainer, per point, with one copy of every torchmetrics metric per point.  So every key that ``validation_step``
logs has a barrier without any change to the module.  Every workaround for Lightning's machinery lives in this file,
next to its cause.
"""

from __future__ import annotations

import abc
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import (
    is_param_in_hook_signature,
)
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torchmetrics import Metric

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.accumulate import (
    Average,
    Reduction,
    reduction_name,
)
from lightning_rebasin.landscape.batches import batch_size, clone_batch
from lightning_rebasin.landscape.first_layer import FirstLayer
from lightning_rebasin.landscape.metric_slots import MetricSlots
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.merging.statistics import (
    averaging,
    batch_norms,
    statistics_of,
)

#: A loss of a plain module on one batch: a mean over the batch, or several of them by name.
LossFunction = Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]]
Context = Callable[[], AbstractContextManager[Any]]

_STEPS = (
    "forward",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
)


#: The state of every average of one point in one process.
_States = dict[str, tuple[Reduction, float, float]]


class Place(NamedTuple):
    """Which batch of which loader is being evaluated."""

    batch_idx: int = 0
    dataloader_idx: int = 0
    loaders: int = 1

    def key(self, name: str) -> str:
        """The name under which Lightning keeps a metric of this loader."""
        return (
            name
            if self.loaders == 1
            else f"{name}/dataloader_idx_{self.dataloader_idx}"
        )


class Probe(abc.ABC):
    """A copy of a module into which weights are written, and what its evaluation said at each point.

    Args:
        module: The module; it is copied and not changed.
        points: Number of points that will be told apart.

    Raises:
        ConfigurationError: The module cannot be copied or evaluated.
    """

    def __init__(self, module: nn.Module, points: int) -> None:
        self.module = copy_module(module)
        self.samples = 0
        self._averages: list[dict[str, Average]] = [{} for _ in range(points)]
        self._targets = weights_of(self.module)
        self._statistics: dict[int, dict[str, Tensor]] = {}
        self._first_layer = FirstLayer(self.module)

    @abc.abstractmethod
    def step(self, point: int, batch: Any, place: Place) -> None:
        """Evaluate one batch with the weights that are loaded, and remember the result under ``point``."""

    def load(self, point: Point, number: int | None = None) -> None:
        """Write the weights of a point into the probe, with its batch-norm statistics if they were re-estimated.

        Args:
            point: Where to evaluate.
            number: Which of the points it is.
        """
        point.write(self._targets)
        if number in self._statistics:
            for name, tensor in self._statistics[number].items():
                self._targets[name].copy_(tensor)

    def evaluate(
        self,
        points: Sequence[Point],
        batch: Any,
        place: Place,
        *,
        context: Context = nullcontext,
    ) -> None:
        """Evaluate one batch at every point.

        Args:
            points: Where to evaluate; their numbers tell the results apart.
            batch: On the module's device; it is cloned for each point, since a step may change it in place.
            place: Which batch of which loader this is.
            context: Makes the context of one evaluation.
        """
        # Anchors first: what the first layer gives there serves the points between them.
        order = sorted(
            range(len(points)), key=lambda i: points[i].anchor is None
        )
        for number in order:
            self.load(points[number], number)
            self._first_layer.start(points[number])
            # Autocast caches half-precision copies of the weights until its context ends; with one context for all
            # points the weights of the first would be evaluated again and again.  A step that draws random numbers
            # must neither move the global generators nor see other numbers at other points.
            with isolated_rng(), context():
                self.step(number, clone_batch(batch), place)
        self._first_layer.stop()

    def estimate_statistics(
        self,
        points: Sequence[Point],
        batches: Sequence[Any],
        *,
        context: Context = nullcontext,
    ) -> None:
        """Re-estimate the batch-norm statistics at every point as cumulative averages, in the probe only.

        Args:
            points: Where to evaluate; their numbers tell the results apart.
            batches: Training batches on the module's device, evaluated like validation batches.
            context: Makes the context of one evaluation.
        """
        kept = self._averages
        norms = batch_norms(self.module)
        for number, point in enumerate(points if norms else ()):
            self._averages = [{} for _ in kept]
            self.load(point)
            with averaging(norms.values()):
                for index, batch in enumerate(batches):
                    with isolated_rng(), context():
                        self.step(number, clone_batch(batch), Place(index))
            self._statistics[number] = statistics_of(norms)
        self._averages = kept
        self.reset_metrics()

    def synchronise_statistics(
        self, reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Average the re-estimated statistics over processes; ``reduce`` is collective."""
        for statistics in self._statistics.values():
            for name, tensor in statistics.items():
                if tensor.is_floating_point():
                    statistics[name] = reduce(tensor)

    def reset_metrics(self) -> None:  # noqa: B027  (most probes have no metrics)
        """Forget the state of metrics, if the probe has any."""

    def results(
        self, gather: Callable[[object], list[Any]] | None = None
    ) -> list[dict[str, float]]:
        """The reduced metrics of every point.

        Args:
            gather: Collects one object from every process; called once, so all processes must call this method.
        """
        own: list[_States] = []
        for averages in self._averages:
            own.append({name: a.state() for name, a in averages.items()})
        everyone: list[list[_States]] = (
            [own] if gather is None else gather(own)
        )
        rows = []
        for point in range(len(own)):
            joined = _joined([states[point] for states in everyone])
            rows.append({name: a.value for name, a in joined.items()})
            weights = [0.0]
            for average in joined.values():
                if average.reduction == "mean":
                    weights.append(average.weight)
            self.samples = int(max(weights))
        return rows

    def higher_is_better(self) -> dict[str, bool]:
        """Metrics that say themselves which way is better."""
        return {}

    def transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002  (LightningProbe needs it)
        """Move a batch of a data loader to the device of the module."""
        return move_data_to_device(batch, self.device)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(
            (tensor.device for tensor in self._targets.values()),
            torch.device("cpu"),
        )


class FunctionProbe(Probe):
    """Evaluates any module with a function ``loss(module, batch)`` that returns means over the batch."""

    def __init__(
        self, module: nn.Module, points: int, loss: LossFunction
    ) -> None:
        super().__init__(module, points)
        self._loss = loss

    def step(self, point: int, batch: Any, place: Place) -> None:
        """Evaluate one batch."""
        output = self._loss(self.module, batch)
        values = output if isinstance(output, Mapping) else {"loss": output}
        for name, value in values.items():
            key = place.key(name)
            self._averages[point].setdefault(key, Average("mean")).update(
                value, batch_size(batch)
            )


class LightningProbe(Probe):
    """Evaluates a LightningModule with its own ``validation_step`` and records what the step logs."""

    def __init__(self, module: LightningModule, points: int) -> None:
        if is_param_in_hook_signature(
            module.validation_step, "dataloader_iter", explicit=True
        ):
            raise ConfigurationError(
                "validation_step(dataloader_iter) consumes its batches, so they cannot be evaluated again at other "
                "weights; use validation_step(batch, batch_idx)"
            )
        super().__init__(module, points)
        self._current: tuple[int, Any, Place] = (0, None, Place())
        self._logged: list[dict[str, Metric]] = [{} for _ in range(points)]
        self._direction: dict[str, bool] = {}
        self._slots = MetricSlots(self.module, points)
        for child in self.module.modules():
            if isinstance(child, LightningModule):
                _redirect(child, self._record)
        # __getstate__ drops the trainer from the copy, but steps may read it (epoch, global step, datamodule).
        trainer = getattr(module, "_trainer", None)
        if trainer is not None:
            cast(LightningModule, self.module).trainer = trainer

    def step(self, point: int, batch: Any, place: Place) -> None:
        """Run ``validation_step`` on one batch."""
        self._current = (point, batch, place)
        self._slots.install(point)
        step = cast(LightningModule, self.module).validation_step
        # Lightning passes dataloader_idx only when there are several loaders, and batch_idx only to steps that take it.
        arguments = []
        if is_param_in_hook_signature(step, "batch_idx", min_args=2):
            arguments.append(place.batch_idx)
        if place.loaders > 1:
            arguments.append(place.dataloader_idx)
        step(batch, *arguments)
        self._current = (0, None, Place())

    def reset_metrics(self) -> None:
        """Forget what batch-norm re-estimation did to the metrics."""
        self._slots.reset()
        self._logged = [{} for _ in self._logged]

    def results(
        self, gather: Callable[[object], list[Any]] | None = None
    ) -> list[dict[str, float]]:
        """The reduced metrics of every point; torchmetrics synchronise themselves over processes."""
        rows = super().results(gather)
        for row, metrics in zip(rows, self._logged, strict=True):
            # Sorted: with several processes each compute() is collective, so the order must be the same everywhere.
            for name in sorted(metrics):
                row[name] = float(metrics[name].compute())
        return rows

    def transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Move a batch with the module's own transfer hooks, in the order in which a Trainer calls them."""
        module = cast(LightningModule, self.module)
        batch = module.on_before_batch_transfer(batch, dataloader_idx)
        batch = module.transfer_batch_to_device(
            batch, self.device, dataloader_idx
        )
        return module.on_after_batch_transfer(batch, dataloader_idx)

    def higher_is_better(self) -> dict[str, bool]:
        """What the logged torchmetrics say."""
        return self._direction

    def _record(
        self,
        name: str,
        value: Any,
        *_: object,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        add_dataloader_idx: bool = True,
        **options: Any,
    ) -> None:
        """Stand in for ``LightningModule.log``."""
        point, batch, place = self._current
        key = place.key(name) if add_dataloader_idx else name
        if isinstance(value, Metric):
            self._logged[point][key] = value
            if value.higher_is_better is not None:
                self._direction[key] = bool(value.higher_is_better)
            return
        reduction = reduction_name(reduce_fx)
        weight = (
            1
            if reduction != "mean"
            else options.get("batch_size") or batch_size(batch)
        )
        self._averages[point].setdefault(key, Average(reduction)).update(
            value, weight
        )


def _joined(processes: Sequence[_States]) -> dict[str, Average]:
    """The averages of one point over all processes, which may have logged different metrics."""
    names = dict.fromkeys(name for states in processes for name in states)
    found = {}
    for name in names:
        own = [states[name] for states in processes if name in states]
        found[name] = Average.merge(own)
    return found


def make_probe(
    module: nn.Module, points: int, loss: LossFunction | None = None
) -> Probe:
    """The probe for a module: a LightningModule measures itself unless ``loss`` is given.

    Raises:
        ConfigurationError: There is nothing to measure with, or the module cannot be copied.
    """
    if loss is not None:
        return FunctionProbe(module, points, loss)
    inner = module._orig_mod if isinstance(module, OptimizedModule) else module
    if not isinstance(inner, LightningModule) or not is_overridden(
        "validation_step", inner
    ):
        raise ConfigurationError(
            f"{type(inner).__name__} has no validation_step of its own; pass loss=, a function loss(module, batch) "
            "that returns the mean loss of the batch or a dict of such means"
        )
    return LightningProbe(inner, points)


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy for evaluation: in eval mode, without gradients, not compiled.

    Raises:
        ConfigurationError: The module holds something that cannot be copied.
    """
    # trainer.validate and trainer.test run in inference mode; tensors made there could never be used elsewhere.
    with torch.inference_mode(mode=False), torch.no_grad():
        try:
            clone = copy.deepcopy(module)
        except (
            Exception
        ) as error:  # anything a user's module holds may refuse to be copied
            raise ConfigurationError(
                f"{type(module).__name__} cannot be copied, which evaluating other weights needs: {error}. Keep open "
                "files, loaders, locks and non-leaf tensors out of the module, or define __deepcopy__"
            ) from error
        clone = _strip_compilation(clone)
        clone.eval()
        return clone.requires_grad_(requires_grad=False)


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Give the global generators back as they were; CUDA's only once CUDA is in use, so as not to start it."""
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with isolate_rng(include_cuda=cuda):
        yield


def _redirect(module: LightningModule, record: Callable[..., None]) -> None:
    """Send what a copy logs, prints and plots to ``record`` or nowhere; the user's logger must not see it."""
    cls = type(module)
    silent = DummyLogger()
    # ``logger`` and ``loggers`` are properties, so only a subclass can replace them; the name is kept for the eyes of
    # code that looks at it.
    module.__class__ = type(
        cls.__name__,
        (cls,),
        {
            "__module__": cls.__module__,
            "log": lambda _self, *args, **kwargs: _bound(record, args, kwargs),
            "print": lambda _self, *_args, **_kwargs: None,
            "logger": property(lambda _self: silent),
            "loggers": property(lambda _self: [silent]),
        },
    )


_LOG_SIGNATURE = inspect.signature(LightningModule.log)


def _bound(
    record: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Call ``record`` with every argument of ``LightningModule.log`` by name."""
    arguments = dict(_LOG_SIGNATURE.bind(None, *args, **kwargs).arguments)
    arguments.pop("self")
    record(arguments.pop("name"), arguments.pop("value"), **arguments)


def _strip_compilation(module: nn.Module) -> nn.Module:
    """Make a copied module run its own code: everything compiled still refers to the original's weights."""
    if isinstance(module, OptimizedModule):
        module = module._orig_mod
    if (
        isinstance(module, LightningModule)
        and getattr(module, "_compiler_ctx", None) is not None
    ):
        # torch.compile of a whole LightningModule binds compiled methods of the *original* to the instance.
        for name in _STEPS:
            module.__dict__.pop(name, None)
        module._compiler_ctx = None
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, OptimizedModule):
                parent._modules[name] = child._orig_mod
    return module


def object_gatherer(trainer: Trainer) -> Callable[[object], list[Any]] | None:
    """A function that collects one object from every process, or ``None`` for a single process."""
    if trainer.world_size == 1:
        return None

    def gather(item: object) -> list[Any]:
        everyone: list[Any] = [None] * trainer.world_size
        # Lightning's all_gather takes tensors of one shape; processes may have logged different keys.
        torch.distributed.all_gather_object(everyone, item)
        return everyone

    return gather
