"""The passes over the data: targets from the ends, sums and solutions layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.captures import (
    Capture,
    batch_size,
    look,
)
from lightning_rebasin.merging.refit.plan import FittedLayer, Norm
from lightning_rebasin.merging.refit.squares import (
    RIDGES,
    Problem,
    Solution,
    Sums,
    solve,
)
from lightning_rebasin.symmetry.trace.record import known_tensors

#: Every so manieth sample judges instead of being fitted.
HELD_OUT = 8
#: Bytes of targets that are kept at a time; more layers than fit take another pass of the ends.
TARGET_BYTES = 256 << 20


@dataclass(frozen=True)
class Ends:
    """The aligned networks, of which one is loaded at a time.

    Args:
        module: A network to load them into.
        states: Their weights.
        shares: Their shares; those of share 0 are not run.
    """

    module: nn.Module
    states: Sequence[Mapping[str, Tensor]]
    shares: Sequence[float]


@final
class Fitter:
    """Fits the layers of a merged network, one after the other, in place."""

    def __init__(
        self,
        merged: nn.Module,
        ends: Ends,
        batches: Sequence[Any],
        *,
        plain: bool,
        ridges: Sequence[float] = RIDGES,
    ) -> None:
        self._merged = merged
        self._state = known_tensors(merged)
        self._ends = ends
        self._batches = batches
        self._plain = plain
        self._ridges = ridges

    def targets(
        self, layers: Mapping[int, FittedLayer]
    ) -> dict[int, list[Tensor]]:
        """What the ends return where the layers are judged: their mean, on the rows of each batch."""
        found: dict[int, list[Tensor]] = {number: [] for number in layers}
        mixed = zip(self._ends.states, self._ends.shares, strict=True)
        for state, share in mixed:
            if not share:
                continue
            self._ends.module.load_state_dict(state)
            for k, batch in enumerate(self._batches):
                size = batch_size(batch)
                captures = {}
                for number, layer in layers.items():
                    captures[number] = Capture(
                        layer, (number, k), size, inputs=False
                    )
                look(
                    self._ends.module,
                    batch,
                    captures.values(),
                    plain=self._plain,
                )
                for number, capture in captures.items():
                    assert capture.outputs is not None
                    part = capture.outputs.float() * share
                    kept = found[number]
                    if k < len(kept):
                        kept[k] += part
                    else:
                        kept.append(part)
        return found

    def fit(
        self, number: int, layer: FittedLayer, targets: Sequence[Tensor]
    ) -> tuple[Solution, int]:
        """Solve one layer and write the solution; also says how many rows it had."""
        weight, bias = effective(layer, self._state)
        groups, inputs, outputs = weight.shape
        fit = Sums(groups, inputs, outputs, weight.device)
        held_out = Sums(groups, inputs, outputs, weight.device)
        before = 0
        for k, batch in enumerate(self._batches):
            capture = Capture(
                layer, (number, k), batch_size(batch), inputs=True
            )
            look(self._merged, batch, [capture], plain=self._plain)
            x, own, rows = capture.inputs, capture.outputs, capture.rows
            assert x is not None
            assert own is not None
            assert rows is not None
            missing = targets[k].to(own.device) - own
            judges = (rows.sample + before) % HELD_OUT == HELD_OUT - 1
            before += int(rows.sample.max()) + 1
            held_out.update(x[judges], missing[judges])
            fit.update(x[~judges], missing[~judges])
        problem = Problem(fit, held_out, weight, layer.intercept)
        solution = solve(problem, self._ridges)
        write(
            layer,
            self._state,
            weight + solution.change,
            bias + solution.shift,
            fit + held_out,
        )
        return solution, fit.count + held_out.count


def effective(
    layer: FittedLayer, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weight ``(g, n, m)`` and bias ``(g, m)`` from the layer's input to where it is judged, in float64."""
    weight = layer.weight.read(state)
    if layer.bias is None:
        bias = torch.zeros_like(weight[:, 0])
    else:
        bias = layer.bias.read(state)
    if layer.norm is not None:
        scale, offset = _affine(layer.norm, state)
        weight = weight * scale[:, None]
        bias = bias * scale + offset
    return weight * layer.factor, bias * layer.factor


def _affine(
    norm: Norm, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
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
    weight, bias = weight / layer.factor, bias / layer.factor
    layer.weight.write(state, weight)
    norm = layer.norm
    if norm is None:
        if layer.bias is not None:
            layer.bias.write(state, bias)
        return
    if layer.bias is not None:
        layer.bias.write(state, torch.zeros_like(bias))
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
