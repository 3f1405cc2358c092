"""Where the activations of a network are looked at and corrected.

A *site* is a layer whose output can be rescaled and shifted per channel by changing its own weights: a convolution or
linear layer (``W, b``) or an affine normalisation (``γ, β``).  With ``y`` its output, ``s·y + t`` is the output of the
layer with ``s·W, s·b + t``: the correction is folded in, and the architecture stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_rebasin.errors import DataError
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

    @property
    def variance(self) -> Tensor:
        """Population variance, shape ``(channels,)``."""
        return self._squares / max(self.count, 1)

    @property
    def std(self) -> Tensor:
        """Population standard deviation, shape ``(channels,)``."""
        return self.variance.sqrt()


@dataclass(frozen=True)
class Site:
    """One correctable layer of a network."""

    name: str
    layer: nn.Module

    @property
    def is_batch_norm(self) -> bool:
        """Whether its output statistics follow from its own weights once the running statistics are right."""
        return isinstance(self.layer, _BatchNorm)

    @property
    def can_shift(self) -> bool:
        """Whether the layer has a bias to put the shift into."""
        return getattr(self.layer, "bias", None) is not None

    def channels(self, output: Tensor) -> Tensor:
        """The output as ``(samples, channels)``."""
        last = isinstance(self.layer, nn.Linear | nn.LayerNorm | nn.RMSNorm)
        return output.movedim(
            -1 if last else self._channel_dim(output), -1
        ).reshape(-1, self.size)

    def along(self, vector: Tensor, output: Tensor) -> Tensor:
        """A per-channel vector, shaped to broadcast with the output."""
        if isinstance(self.layer, nn.Linear | nn.LayerNorm | nn.RMSNorm):
            return vector.to(output)
        dim = self._channel_dim(output)
        return vector.to(output).reshape(
            *(-1 if d == dim else 1 for d in range(output.ndim))
        )

    def _channel_dim(self, output: Tensor) -> int:
        """1 with a batch dimension, 0 for an unbatched convolution."""
        spatial = (
            len(self.layer.kernel_size)
            if isinstance(self.layer, _ConvNd)
            else None
        )
        return 0 if spatial is not None and output.ndim == spatial + 1 else 1

    @property
    def size(self) -> int:
        """Number of output channels."""
        layer = self.layer
        if isinstance(layer, _ConvNd):
            return layer.out_channels
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return len(weight)

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Change the layer so that it returns ``scale · y + shift`` instead of ``y``; in place."""
        weight, bias = self.layer.weight, getattr(self.layer, "bias", None)
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            if isinstance(
                self.layer, _ConvTransposeNd
            ):  # (in, out / groups, ...), input channels ordered by group
                grouped = weight.view(self.layer.groups, -1, *weight.shape[1:])
                by_group = scale.to(weight).reshape(
                    self.layer.groups, 1, -1, *(1 for _ in weight.shape[2:])
                )
                grouped.mul_(by_group)
            else:
                weight.mul_(
                    scale.to(weight).reshape(
                        -1, *(1 for _ in weight.shape[1:])
                    )
                )
            if bias is not None:
                bias.mul_(scale.to(bias)).add_(shift.to(bias))


def find_sites(module: nn.Module, batches: Iterable[Any]) -> tuple[Site, ...]:
    """The correctable layers in the order in which a forward pass runs them.

    Left out are layers that run more than once in a pass or share their weights with another (a change for one place
    would change the other), and convolutions or linear layers whose output goes straight into a batch norm, which takes
    any scale and shift away again.

    Raises:
        DataError: There is no batch.
    """
    candidates = {
        name: child
        for name, child in module.named_modules()
        if _is_candidate(child)
    }
    owners: dict[int, int] = {}
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    order: list[str] = []
    made: list[tuple[Tensor, str]] = []
    absorbed: set[str] = set()

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            order.append(name)
            if isinstance(output, Tensor):
                made.append((output, name))
            if isinstance(candidates[name], _BatchNorm):
                absorbed.update(
                    source
                    for tensor, source in made
                    if tensor is inputs[0] and source != name
                )

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, child in candidates.items():
            stack.callback(child.register_forward_hook(note(name)).remove)
        if next(outputs(module, batches), _NOTHING) is _NOTHING:
            raise DataError("no batches given to measure activations on")
    once = [
        name
        for name in order
        if order.count(name) == 1 and name not in absorbed
    ]
    return tuple(
        Site(name, candidates[name])
        for name in once
        if all(
            owners[id(p)] == 1
            for p in candidates[name].parameters(recurse=False)
        )
    )


def measure(
    module: nn.Module, sites: Iterable[Site], batches: Iterable[Any]
) -> dict[str, Moments]:
    """Mean and variance per channel of the output of every site, over all batches."""
    moments = {site.name: Moments() for site in sites}

    def watch(site: Site, output: Tensor) -> None:
        moments[site.name].update(site.channels(output))

    with watching(sites, watch), torch.no_grad():
        for _ in outputs(module, batches):
            pass
    return moments


@contextmanager
def watching(
    sites: Iterable[Site], see: Callable[[Site, Tensor], Tensor | None]
) -> Iterator[None]:
    """Show the output of every site to ``see``, which may replace it."""
    with ExitStack() as stack:
        for site in sites:

            def hook(
                _: nn.Module, __: Any, output: Any, site: Site = site
            ) -> Any:
                return see(site, output)

            stack.callback(site.layer.register_forward_hook(hook).remove)
        yield


def _is_candidate(child: nn.Module) -> bool:
    if (
        isinstance(child, nn.LayerNorm | nn.RMSNorm)
        and len(child.normalized_shape) != 1
    ):
        return False
    return isinstance(child, _LAYERS + _NORMS) and isinstance(
        getattr(child, "weight", None), Tensor
    )


_NOTHING = object()
