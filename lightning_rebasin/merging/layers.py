"""Where the activations of a network are looked at and corrected.

A :class:`Layer` is a submodule whose output can be rescaled and shifted per channel by changing its own weights: a
convolution or linear layer (``W, b``) or an affine normalisation (``γ, β``).  With ``y`` its output, ``s·y + t`` is
the output of the layer with ``s·W, s·b + t``: the correction is folded in, and the architecture stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_rebasin.errors import DataError
from lightning_rebasin.merging.processes import Total, alone, total_number
from lightning_rebasin.merging.statistics import outputs

_LAYERS = (_ConvNd, nn.Linear)
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Moments:
    """Mean and variance per channel of everything seen, in float64 (Chan et al.'s pairwise update)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, values: Tensor) -> None:
        """Take in ``values``, shaped ``(samples, channels)``."""
        values = values.detach().double()
        count, mean = len(values), values.mean(0)
        squares = (values - mean).square().sum(0)
        total = self.count + count
        if not self.count:
            self.mean, self._squares = mean, squares
        else:
            gap = mean - self.mean
            self.mean = self.mean + gap * (count / total)
            self._squares = (
                self._squares
                + squares
                + gap.square() * (self.count * count / total)
            )
        self.count = total

    def reduce(self, total: Total) -> None:
        """Take in what other processes have seen."""
        own, count = self.mean, self.count
        self.count = round(total_number(total, count, own.device))
        self.mean = total(own * count) / max(self.count, 1)
        # Deviations from the own mean, and of that from the common one.
        gap = own - self.mean
        self._squares = total(self._squares + count * gap.square())

    @property
    def variance(self) -> Tensor:
        """Population variance, shape ``(channels,)``."""
        return self._squares / max(self.count, 1)

    @property
    def std(self) -> Tensor:
        """Population standard deviation, shape ``(channels,)``."""
        return self.variance.sqrt()


@dataclass(frozen=True)
class Layer:
    """One correctable layer of a network."""

    name: str
    module: nn.Module

    @property
    def is_batch_norm(self) -> bool:
        """Whether its output statistics follow from its own weights once the running statistics are right."""
        return isinstance(self.module, _BatchNorm)

    @property
    def can_shift(self) -> bool:
        """Whether the layer has a bias to put the shift into."""
        return getattr(self.module, "bias", None) is not None

    def channels(self, output: Tensor) -> Tensor:
        """The output as ``(samples, channels)``."""
        last = isinstance(self.module, nn.Linear | nn.LayerNorm | nn.RMSNorm)
        return output.movedim(
            -1 if last else self._channel_dim(output), -1
        ).reshape(-1, self.size)

    def along(self, vector: Tensor, output: Tensor) -> Tensor:
        """A per-channel vector, shaped to broadcast with the output."""
        if isinstance(self.module, nn.Linear | nn.LayerNorm | nn.RMSNorm):
            return vector.to(output)
        dim = self._channel_dim(output)
        return vector.to(output).reshape(
            *(-1 if d == dim else 1 for d in range(output.ndim))
        )

    def _channel_dim(self, output: Tensor) -> int:
        """1 with a batch dimension, 0 for an unbatched convolution."""
        spatial = (
            len(self.module.kernel_size)
            if isinstance(self.module, _ConvNd)
            else None
        )
        return 0 if spatial is not None and output.ndim == spatial + 1 else 1

    @property
    def size(self) -> int:
        """Number of output channels."""
        layer = self.module
        if isinstance(layer, _ConvNd):
            return layer.out_channels
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return len(weight)

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Change the layer so that it returns ``scale · y + shift`` instead of ``y``; in place."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        assert isinstance(weight, Tensor)
        factor = scale.to(weight)
        with torch.no_grad():
            if isinstance(self.module, _ConvTransposeNd):
                # (in, out / groups, ...), input channels ordered by group
                groups = self.module.groups
                kernel = [1] * len(weight.shape[2:])
                grouped = weight.view(groups, -1, *weight.shape[1:])
                grouped.mul_(factor.reshape(groups, 1, -1, *kernel))
            else:
                rest = [1] * len(weight.shape[1:])
                weight.mul_(factor.reshape(-1, *rest))
            if bias is not None:
                bias.mul_(scale.to(bias)).add_(shift.to(bias))


def find_layers(
    module: nn.Module, batches: Iterable[Any]
) -> tuple[Layer, ...]:
    """The correctable layers in the order in which a forward pass runs them.

    Left out are layers that run more than once in a pass or share their weights with another (a change for one place
    would change the other), and convolutions or linear layers whose output goes straight into a batch norm, which takes
    any scale and shift away again.

    Raises:
        DataError: There is no batch.
    """
    named = module.named_modules()
    candidates = {name: child for name, child in named if _is_candidate(child)}
    run = _watch_one_pass(module, candidates, batches)
    shared = _shared_parameters(module)
    found = []
    for name, times in run.times.items():
        own = {id(p) for p in candidates[name].parameters(recurse=False)}
        if times == 1 and name not in run.absorbed and not own & shared:
            found.append(Layer(name, candidates[name]))
    return tuple(found)


@dataclass
class _Pass:
    """What one forward pass showed.

    Args:
        times: How often each candidate ran, in the order of first runs.
        made: Outputs and the candidates that made them.
        absorbed: Candidates whose output went straight into a batch norm.
    """

    times: dict[str, int] = field(default_factory=dict)
    made: list[tuple[Tensor, str]] = field(default_factory=list)
    absorbed: set[str] = field(default_factory=set)

    def note(
        self, name: str, child: nn.Module, given: Any, output: Any
    ) -> None:
        """One candidate has run."""
        self.times[name] = self.times.get(name, 0) + 1
        if isinstance(output, Tensor):
            self.made.append((output, name))
        if isinstance(child, _BatchNorm):
            for tensor, source in self.made:
                if tensor is given and source != name:
                    self.absorbed.add(source)


def _watch_one_pass(
    module: nn.Module,
    candidates: Mapping[str, nn.Module],
    batches: Iterable[Any],
) -> _Pass:
    seen = _Pass()

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(child: nn.Module, inputs: Any, output: Any) -> None:
            seen.note(name, child, inputs[0] if inputs else None, output)

        return note

    with ExitStack() as stack, torch.no_grad():
        for name, child in candidates.items():
            stack.callback(child.register_forward_hook(hook(name)).remove)
        if next(outputs(module, batches), _NOTHING) is _NOTHING:
            raise DataError("no batches given to measure activations on")
    return seen


def _shared_parameters(module: nn.Module) -> set[int]:
    """Ids of the parameters that several submodules own."""
    seen: set[int] = set()
    shared: set[int] = set()
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def measure(
    module: nn.Module,
    layers: Iterable[Layer],
    batches: Iterable[Any],
    *,
    total: Total = alone,
) -> dict[str, Moments]:
    """Mean and variance per channel of the output of every layer, over all batches of all processes."""
    moments = {layer.name: Moments() for layer in layers}

    def watch(layer: Layer, output: Tensor) -> None:
        moments[layer.name].update(layer.channels(output))

    with watching(layers, watch), torch.no_grad():
        for _ in outputs(module, batches):
            pass
    for seen in moments.values():
        seen.reduce(total)
    return moments


@contextmanager
def watching(
    layers: Iterable[Layer], see: Callable[[Layer, Tensor], Tensor | None]
) -> Iterator[None]:
    """Show the output of every layer to ``see``, which may replace it."""
    with ExitStack() as stack:
        for layer in layers:

            def hook(
                _: nn.Module, __: Any, output: Any, layer: Layer = layer
            ) -> Any:
                return see(layer, output)

            stack.callback(layer.module.register_forward_hook(hook).remove)
        yield


def _is_candidate(child: nn.Module) -> bool:
    """Whether a layer can be corrected: it has a weight per channel of its output."""
    if (
        isinstance(child, nn.LayerNorm | nn.RMSNorm)
        and len(child.normalized_shape) > 1
    ):
        return False
    has_weight = isinstance(getattr(child, "weight", None), Tensor)
    return has_weight and isinstance(child, _LAYERS + _NORMS)


_NOTHING = object()
