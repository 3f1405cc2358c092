"""The passes over the data: targets from the ends, sums and solutions layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from lightning_rebasin.merging.processes import (
    Total,
    alone,
    device_of,
    total_number,
)
from lightning_rebasin.merging.refit.batches import (
    Batches,
    batch_size,
    fingerprint,
)
from lightning_rebasin.merging.refit.beginnings import Beginning
from lightning_rebasin.merging.refit.captures import Capture, look
from lightning_rebasin.merging.refit.fitted import FittedLayer
from lightning_rebasin.merging.refit.squares import (
    RIDGES,
    Problem,
    Solution,
    Sums,
    solve,
)
from lightning_rebasin.merging.refit.writing import effective, write
from lightning_rebasin.symmetry.trace.record import known_tensors

#: Every so manieth sample judges instead of being fitted.
_JUDGES = 8
#: Rows per layer that are looked at, about, and positions per sample, at most.
_ROWS = 1 << 16
_POSITIONS = 64
#: Bytes of targets that are kept at a time; more layers than fit take another pass of the ends.
_TARGET_BYTES = 256 << 20
#: Bytes of the merged network's activations that are kept, so that its pass goes on where it was.
_KEPT_BYTES = 512 << 20


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
        batches: Batches,
        *,
        plain: bool,
        total: Total = alone,
        ridges: Sequence[float] = RIDGES,
    ) -> None:
        self._merged = merged
        self._state = known_tensors(merged)
        self._ends = ends
        self._batches = batches
        self._plain = plain
        self._total = total
        self._ridges = ridges
        #: What each batch is known by: rows are drawn by it.
        self._prints = [fingerprint(batch) for batch in batches]
        count = len(self._prints)
        # The layers are fitted in the order in which they run, each of them before the next one is looked at.
        self._beginnings = [
            Beginning(_KEPT_BYTES // count, self._state.values())
            for _ in range(count)
        ]
        samples = total_number(total, batches.samples, device_of(merged))
        per_sample = _ROWS // max(round(samples), 1)
        self._positions = min(max(per_sample, 1), _POSITIONS)

    def fit_all(
        self, layers: Sequence[FittedLayer]
    ) -> Iterator[tuple[FittedLayer, Solution, int]]:
        """Fit layers in the order in which they run; yields each with its solution and its number of rows."""
        for group in self._groups(layers):
            targets = self.targets(group)
            for number, layer in group.items():
                # Released as soon as the layer is done.
                solution, rows = self.fit(number, layer, targets.pop(number))
                yield layer, solution, rows

    def _groups(
        self, layers: Sequence[FittedLayer]
    ) -> list[dict[int, FittedLayer]]:
        """Runs of layers whose targets are kept at the same time."""
        groups: list[dict[int, FittedLayer]] = []
        kept = 0
        for number, layer in enumerate(layers):
            outputs = layer.weight.index[:, 0].numel()
            positions = min(layer.positions, self._positions)
            size = 4 * outputs * positions * self._batches.samples
            if not groups or kept + size > _TARGET_BYTES:
                groups.append({})
                kept = 0
            groups[-1][number] = layer
            kept += size
        return groups

    def targets(
        self, layers: Mapping[int, FittedLayer]
    ) -> dict[int, list[Tensor]]:
        """What the ends return where the layers are judged: their mean, batch by batch."""
        found: dict[int, list[Tensor]] = {n: [] for n in layers}
        mixed = zip(self._ends.states, self._ends.shares, strict=True)
        for state, share in mixed:
            if share:
                self._ends.module.load_state_dict(state)
                self._add_targets(found, layers, share)
        return found

    def _add_targets(
        self,
        found: Mapping[int, list[Tensor]],
        layers: Mapping[int, FittedLayer],
        share: float,
    ) -> None:
        """Add the share of the end that is loaded."""
        for k, batch in enumerate(self._batches):
            captures = {}
            for number, layer in layers.items():
                captures[number] = self._capture(number, layer, k, batch)
            every = list(captures.values())
            look(self._ends.module, batch, every, plain=self._plain)
            for number, capture in captures.items():
                part = _returned(capture) * share
                kept = found[number]
                if k == len(kept):
                    kept.append(part)
                else:
                    kept[k].add_(part)

    def _capture(
        self,
        number: int,
        layer: FittedLayer,
        k: int,
        batch: Any,
        *,
        inputs: bool = False,
    ) -> Capture:
        """Who looks at a layer on batch ``k``."""
        size, most = batch_size(batch), self._positions
        # Numbers are hashed alike in every run and in every process.
        seed = hash((number, self._prints[k]))
        return Capture(layer, seed, size, most, inputs=inputs)

    def fit(
        self,
        number: int,
        layer: FittedLayer,
        targets: Sequence[Tensor],
    ) -> tuple[Solution, int]:
        """Solve one layer and write the solution; also says how many rows it had."""
        weight, bias = effective(layer, self._state)
        fit, held_out = self._sums(number, layer, weight, targets)
        for sums in (fit, held_out):
            sums.reduce(self._total)
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

    def _sums(
        self,
        number: int,
        layer: FittedLayer,
        weight: Tensor,
        targets: Sequence[Tensor],
    ) -> tuple[Sums, Sums]:
        """Sums over the rows that are fitted, and over those that judge."""
        groups, inputs, outputs = weight.shape
        fit = Sums(groups, inputs, outputs, weight.device)
        held_out = Sums(groups, inputs, outputs, weight.device)
        before = 0
        for k, batch in enumerate(self._batches):
            capture = self._capture(number, layer, k, batch, inputs=True)
            look(
                self._merged,
                batch,
                [capture],
                plain=self._plain,
                beginning=self._beginnings[k],
                until=layer.place,
            )
            x, rows, own = capture.inputs, capture.rows, capture.outputs
            assert x is not None
            assert own is not None
            assert rows is not None
            missing = targets[k].to(own.device) - own
            judges = (rows.sample + before) % _JUDGES == _JUDGES - 1
            held_out.update(x[judges], missing[judges])
            fit.update(x[~judges], missing[~judges])
            before += int(rows.sample.max()) + 1
        return fit, held_out


def _returned(capture: Capture) -> Tensor:
    assert capture.outputs is not None
    return capture.outputs.float()
