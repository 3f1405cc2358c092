"""The loss of a module on a batch as a function of weights that can be differentiated, twice.

What is differentiated is what is measured elsewhere: a function ``loss(module, batch)``, or the loss that the module's
own ``validation_step`` logs.  A private copy runs in eval mode on weights that are handed over (``functional_call``),
so that nothing is written anywhere.

Two things that PyTorch does not differentiate are replaced in the copy:

- batch norms in eval mode are differentiated in their running statistics too, which move along a chord like weights;
- attention runs its plain formula: the fused kernels have no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.batches import clone_batch, on_device
from lightning_rebasin.landscape.copies import copy_module, isolated_rng
from lightning_rebasin.landscape.lightning_probe import (
    check_measurable,
    move_batch,
)
from lightning_rebasin.landscape.points import State
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.tables import main_metric
from lightning_rebasin.landscape.weights import first_names, weights_of
from lightning_rebasin.merging.statistics import batch_norms
from lightning_rebasin.symmetry.run.copy import uncompiled
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.run.lightning import (
    call,
    is_lightning,
    replace_methods,
    silence,
)

#: How far two runs of one batch may differ: the order of sums on a GPU, not noise.
_REPEATS = 1e-4


@final
class DifferentiableLoss:
    """A loss as a function of weights.

    Args:
        module: A LightningModule, whose ``validation_step`` logs the loss, or any module together with ``loss``; it is
            copied.
        loss: ``loss(module, batch)`` returning the mean loss of the batch, or a dict of such means.
        metric: Which of several; the first loss if omitted.

    Raises:
        ConfigurationError: A plain module without ``loss``, or a module that cannot be copied.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: LossFunction | None = None,
        metric: str | None = None,
    ) -> None:
        check_measurable(module, loss)
        inner = uncompiled(module) if loss is None else module
        copy = copy_module(inner)
        values = _logs(copy, inner) if loss is None else loss
        for norm in batch_norms(copy).values():
            # Of this one module; the class keeps its own.
            vars(norm)["forward"] = partial(_normalise, norm)
        self._runner = _Runner(copy, values)
        self._first = first_names(copy)
        self._metric = metric
        self._steps = loss is None
        self.device = next(
            (t.device for t in weights_of(copy).values()), torch.device("cpu")
        )

    @property
    def metric(self) -> str:
        """What the loss is called; known after the first batch."""
        assert self._metric is not None
        return self._metric

    def ready(self, batch: Any) -> Any:
        """A batch of a data loader on the module's device, moved as a Trainer would where the module's step is run."""
        if not self._steps:
            return on_device(batch, self.device)
        return move_batch(
            cast(LightningModule, self._runner.module), batch, self.device
        )

    def variables(self, state: State) -> dict[str, Tensor]:
        """The floating-point tensors of a state as leaves that require gradients, each tied one once.

        Args:
            state: Weights that fit the module.
        """
        found = {}
        for name, tensor in state.items():
            if self._first[name] == name and tensor.is_floating_point():
                own = tensor.detach().to(self.device)
                # A tensor made in inference mode cannot become a leaf.
                own = own.clone() if own.is_inference() else own
                found[name] = own.requires_grad_()
        return found

    def untied(self, direction: State) -> dict[str, Tensor]:
        """A direction on the module's device, each tied tensor once."""
        found = {}
        for name, tensor in direction.items():
            if self._first[name] == name:
                found[name] = tensor.to(self.device)
        return found

    def at(
        self, variables: Mapping[str, Tensor], state: State, batch: Any
    ) -> Tensor:
        """The loss of a batch.

        Args:
            variables: What :meth:`variables` returned, or functions of it.
            state: Where the other tensors are taken from.
            batch: What :meth:`ready` returned.

        Returns:
            A scalar with a graph.

        Raises:
            ConfigurationError: The loss has no graph, is not one number, or there is no such metric.
        """
        weights = {}
        for name, tensor in state.items():
            if self._first[name] == name:
                own = variables.get(name)
                weights[f"module.{name}"] = tensor if own is None else own
        with isolated_rng(), sdpa_kernel(SDPBackend.MATH):
            # Cloned: tensors made in inference mode could not be saved for the backward pass.
            arguments = (clone_batch(batch),)
            values = functional_call(self._runner, weights, arguments)
        named = values if isinstance(values, Mapping) else {"loss": values}
        self._metric = main_metric(named, self._metric)
        return _checked(named[self._metric], self._metric)

    def check_repeats(self, state: State, batch: Any) -> None:
        """Refuse a loss that is another one at the next call.

        Raises:
            ConfigurationError: Two runs with different random numbers differ.
        """
        values = []
        for seed in (0, 1):
            with isolated_rng(), differentiating():
                torch.manual_seed(seed)
                value = self.at(self.variables(state), state, batch)
                values.append(float(value.detach()))
        first, second = values
        if abs(first - second) > _REPEATS * max(abs(first), abs(second)):
            raise ConfigurationError(
                f"{self.metric!r} is random: the same weights and batch gave {first:.6g} and {second:.6g} in eval "
                "mode. Derivatives of a random loss predict nothing; take out what draws random numbers, or pass loss="
            )


class _Runner(nn.Module):
    """Makes what gives the loss a ``forward``, whose weights can be replaced."""

    def __init__(
        self, module: nn.Module, values: Callable[[nn.Module, Any], Any]
    ) -> None:
        super().__init__()
        self.module = module
        self._values = values

    def forward(self, batch: Any) -> Any:
        """The loss, or several values by name."""
        return self._values(self.module, batch)


def _logs(copy: nn.Module, original: nn.Module) -> LossFunction:
    """The tensors that ``validation_step`` logs on a batch; metrics have no gradient, and are not asked."""
    silence(copy, original)
    logged: dict[str, Tensor] = {}

    def log(
        _self: object, name: str, value: object, *_: object, **__: object
    ) -> None:
        if isinstance(value, Tensor):
            logged[name] = value

    def log_dict(
        _self: object, values: Mapping[str, object], *_: object, **__: object
    ) -> None:
        for name, value in values.items():
            log(_self, name, value)

    for part in copy.modules():
        if is_lightning(part):
            replace_methods(part, {"log": log, "log_dict": log_dict})

    def values(module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        example = Example((batch,), method="validation_step")
        call(module, example, {})
        found = dict(logged)
        logged.clear()
        return found

    return values


def _normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm with running statistics, which PyTorch's own does not differentiate."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # (features,) stands along the second axis of (samples, features, ...).
    shape = (1, -1, *(1 for _ in range(x.ndim - 2)))
    scale = torch.rsqrt(norm.running_var + norm.eps)
    y = (x - norm.running_mean.view(shape)) * scale.view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y


def _checked(value: object, name: str) -> Tensor:
    """A loss that can be differentiated."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ConfigurationError(
            f"{name!r} is {value!r}, not one number per batch"
        )
    if not value.requires_grad:
        raise ConfigurationError(
            f"{name!r} has no gradient in the weights (torch.no_grad() in the step, .item(), or a metric that counts): "
            "choose another metric=, or pass loss=, a function loss(module, batch) that returns a tensor"
        )
    return value.squeeze()


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients on, whatever mode the caller is in: validation runs without them."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def derivative(
    value: Tensor,
    variables: Sequence[Tensor],
    *,
    graph: bool = False,
    keep: bool = False,
) -> tuple[Tensor, ...]:
    """The gradient of a scalar, zeros where it does not depend on a variable.

    Args:
        value: A scalar; one without a graph is constant.
        variables: Leaves.
        graph: Whether the gradient will be differentiated again.
        keep: Whether another gradient will be taken of the same value's graph.

    Raises:
        ConfigurationError: An operation has no derivative, or no second one.  PyTorch does not tell of one whose author
            marked it ``once_differentiable``: it takes that gradient for constant.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> (first,) = derivative(w**2, [w], graph=True)
        >>> float(first.detach()), float(derivative(first, [w])[0])
        (6.0, 2.0)
    """
    if not value.requires_grad:
        return tuple(torch.zeros_like(v) for v in variables)
    try:
        return torch.autograd.grad(
            value,
            variables,
            retain_graph=keep or graph,
            create_graph=graph,
            allow_unused=True,
            materialize_grads=True,
        )
    except RuntimeError as error:
        raise ConfigurationError(
            f"the loss cannot be differentiated twice: {error}. Replace that operation, or pass another loss="
        ) from error
