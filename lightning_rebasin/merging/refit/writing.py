"""From a layer's weights to where it is judged, and back: what is read and written.

Between a layer and its target stand a batch norm, gains and factors.  Together with the weight they are one matrix and
one offset; a solution for these is written so that the network computes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_rebasin.merging.refit.fitted import FittedLayer, Norm
from lightning_rebasin.merging.refit.squares import Sums
from lightning_rebasin.merging.refit.systems import Scaling

#: An output with a gain this much smaller than the largest one is not seen.
_INVISIBLE = 1e-9


def effective(
    layer: FittedLayer, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weight ``(g, n, m)`` and bias ``(g, m)`` from the layer's input to where it is judged, in float64."""
    weight = layer.weight.read(state)
    if isinstance(layer.system, Scaling):
        # Its input is its own output.
        weight = torch.full_like(weight, layer.factor)
        return weight, torch.zeros_like(weight[:, 0])
    if layer.bias is None:
        bias = torch.zeros_like(weight[:, 0])
    else:
        bias = layer.bias.read(state)
    if layer.norm is not None:
        scale, offset = _affine(layer.norm, state)
        weight = weight * scale[:, None]
        bias = bias * scale + offset
    scale = _behind(layer, state)
    return weight * scale[:, None], bias * scale


def _behind(layer: FittedLayer, state: Mapping[str, Tensor]) -> Tensor:
    """What the output is multiplied with on the way to where it is judged, ``(g, m)``."""
    scale = torch.full(
        layer.weight.index[:, 0].shape, layer.factor, dtype=torch.float64
    )
    scale = scale.to(state[layer.weight.name].device)
    for gain in layer.gains:
        scale = scale * gain.read(state)
    return scale


def _affine(norm: Norm, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch norm as ``scale · y + offset``."""
    scale = (norm.variance.read(state) + norm.epsilon).rsqrt()
    if norm.gain is not None:
        scale = scale * norm.gain.read(state)
    offset = -norm.mean.read(state) * scale
    if norm.offset is not None:
        offset = offset + norm.offset.read(state)
    return scale, offset


def write(
    layer: FittedLayer,
    state: Mapping[str, Tensor],
    weight: Tensor,
    bias: Tensor,
    sums: Sums,
) -> None:
    """Make a layer compute ``x · weight + bias``, in place.

    The statistics of an absorbed batch norm are made true: they are those of what it gets to see, so that training on
    or estimating them again on the same data changes nothing.

    Args:
        layer: The layer.
        state: The tensors of the merged network.
        weight: From the input to where the layer is judged, ``(g, n, m)``.
        bias: Likewise, ``(g, m)``.
        sums: Sums of the layer's inputs.
    """
    if isinstance(layer.system, Scaling):
        _write_scaling(layer, state, weight, bias, sums)
        return
    scale = _behind(layer, state)
    # An output that a gain takes away keeps its weight.
    visible = scale.abs() > _INVISIBLE * scale.abs().max()
    scale = torch.where(visible, scale, 1.0)
    present, present_bias = effective(layer, state)
    weight = torch.where(visible[:, None], weight, present) / scale[:, None]
    bias = torch.where(visible, bias, present_bias) / scale
    layer.weight.write(state, weight)
    if layer.norm is not None:
        if layer.bias is not None:
            layer.bias.write(state, torch.zeros_like(bias))
        _write_norm(layer.norm, state, weight, bias, sums)
    elif layer.bias is not None:
        layer.bias.write(state, bias)


def _write_norm(
    norm: Norm,
    state: Mapping[str, Tensor],
    weight: Tensor,
    bias: Tensor,
    sums: Sums,
) -> None:
    """Make an absorbed norm add the bias and do nothing else."""
    if norm.gain is None or norm.offset is None:
        # Nothing but the statistics can hold the shift.
        norm.mean.write(state, -bias)
        norm.variance.write(state, torch.full_like(bias, 1 - norm.epsilon))
        if norm.gain is not None:
            norm.gain.write(state, torch.ones_like(bias))
        return
    count = max(sums.count, 1)
    mean_x = sums.x / count
    covariance = sums.xx / count - mean_x[:, :, None] * mean_x[:, None, :]
    mean = torch.einsum("gn,gnm->gm", mean_x, weight)
    variance = (weight * (covariance @ weight)).sum(1).clamp_min(0)
    norm.mean.write(state, mean)
    norm.variance.write(state, variance)
    norm.gain.write(state, (variance + norm.epsilon).sqrt())
    norm.offset.write(state, bias + mean)


def _write_scaling(
    layer: FittedLayer,
    state: Mapping[str, Tensor],
    weight: Tensor,
    bias: Tensor,
    sums: Sums,
) -> None:
    """Scale and shift the output of a norm."""
    weight, bias = weight[:, 0] / layer.factor, bias / layer.factor
    norm = layer.norm
    if norm is None:
        gain = layer.weight.read(state)
        layer.weight.write(state, gain * weight[:, None])
        if layer.bias is not None:
            offset = layer.bias.read(state)
            layer.bias.write(state, offset * weight + bias)
        return
    scale, offset = _affine(norm, state)
    count = max(sums.count, 1)
    mean_out = sums.x / count
    variance_out = sums.xx[:, :, 0] / count - mean_out.square()
    alive = scale != 0
    divisor = torch.where(alive, scale, 1.0)
    mean = (mean_out - offset) / divisor
    variance = (variance_out / divisor.square()).clamp_min(0)
    scale, offset = scale * weight, offset * weight + bias
    norm.mean.write(state, mean)
    norm.variance.write(state, variance)
    if norm.gain is not None:
        norm.gain.write(state, scale * (variance + norm.epsilon).sqrt())
    if norm.offset is not None:
        norm.offset.write(state, offset + scale * mean)
