"""Samples of what layers see and return, taken while a network runs.

The rows at which a layer is looked at are drawn anew for every batch, from a generator that depends on the layer and
on what is in the batch: the ends and the merged network are looked at in the same places, whatever the device, the
process and the order of the batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.merging.refit.beginnings import (
    Beginning,
    StaleError,
)
from lightning_rebasin.merging.refit.fitted import FittedLayer
from lightning_rebasin.merging.refit.places import (
    Place,
    Trail,
    Watcher,
    watch,
)
from lightning_rebasin.merging.refit.systems import Rows


@final
class Capture:
    """What one layer sees and returns on one batch.

    Args:
        layer: The layer.
        seed: Decides which rows are drawn.
        samples: Size of the batch.
        positions: How many positions of a sample are looked at, at most.
        inputs: Whether the layer's inputs are wanted.
    """

    def __init__(
        self,
        layer: FittedLayer,
        seed: int,
        samples: int,
        positions: int,
        *,
        inputs: bool,
    ) -> None:
        self._positions = positions
        self._layer = layer
        self._seed = seed
        self._samples = samples
        self._wants_inputs = inputs
        self._trail: Trail | None = None
        self.rows: Rows | None = None
        #: Inputs ``(R, g, n)`` of the rows.
        self.inputs: Tensor | None = None
        #: Outputs ``(R, g, m)`` of the rows, where the layer is judged.
        self.outputs: Tensor | None = None

    def watchers(self, trails: set[Trail]) -> dict[Place, Watcher]:
        """Who looks where; the layer's output is followed by one of the trails."""
        layer = self._layer

        def start(given: Mapping[str, Any], result: Tensor) -> None:
            system = layer.system
            samples, positions = system.counts(result, self._samples)
            rows = draw(samples, positions, self._positions, self._seed).to(
                result.device
            )
            self.rows = rows
            if self._wants_inputs:
                self.inputs = system.inputs(given, result, rows)
            self._trail = Trail(result)
            trails.add(self._trail)
            if not layer.steps:
                self._finish(result)

        def step(given: Mapping[str, Any], result: Tensor) -> None:
            del given
            assert self._trail is not None
            self._trail.go_on(result)

        def finish(given: Mapping[str, Any], result: Tensor) -> None:
            step(given, result)
            self._finish(result)
            assert self._trail is not None
            trails.discard(self._trail)

        found: dict[Place, Watcher] = dict.fromkeys(layer.steps, step)
        found[layer.place] = start
        if layer.steps:
            found[layer.target] = finish
        return found

    def _finish(self, result: Tensor) -> None:
        assert self._trail is not None
        assert self.rows is not None
        back = self._trail.back(result)
        self.outputs = self._layer.system.outputs(back, self.rows)


def draw(samples: int, positions: int, wanted: int, seed: int) -> Rows:
    """Draw rows: at most ``wanted`` positions of each sample, each sample its own.

    Example:
        >>> draw(2, 3, 3, 0).flat.tolist()
        [0, 1, 2, 3, 4, 5]
    """
    count = min(positions, wanted)
    every = torch.arange(samples)[:, None].expand(samples, count)
    if count == positions:
        chosen = torch.arange(positions).expand(samples, count)
    else:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(samples, positions, generator=generator)
        chosen = noise.topk(count, dim=1).indices
    return Rows(every.reshape(-1), chosen.reshape(-1), positions)


def look(
    module: nn.Module,
    batch: Any,
    captures: Sequence[Capture],
    *,
    plain: bool,
    beginning: Beginning | None = None,
    until: Place | None = None,
) -> None:
    """Run a network until all captures have what they want.

    Args:
        module: The network.
        batch: The batch.
        captures: Who wants to see what.
        plain: Switch fused kernels off, as on the tape.
        beginning: What was kept of an earlier pass on the batch.
        until: Operation in front of which nothing changes any more; what is alive there is kept.

    Raises:
        TraceError: The network takes another path on this batch than on the example.
    """

    def run(start: Beginning | None) -> bool:
        trails: set[Trail] = set()
        return watch(
            module,
            batch,
            _watchers(captures, trails),
            trails,
            plain=plain,
            beginning=start,
            until=until,
        )

    try:
        complete = run(beginning)
    except StaleError:
        # In full: the next pass may begin with what is true then.
        complete = run(None)
    if not complete:
        raise TraceError(
            "the network takes another path through its layers on this batch than on the first one; "
            "give batches that take the same path"
        )


def _watchers(
    captures: Sequence[Capture], trails: set[Trail]
) -> dict[Place, list[Watcher]]:
    """Who looks where, of all captures together."""
    found: dict[Place, list[Watcher]] = {}
    for capture in captures:
        for place, watcher in capture.watchers(trails).items():
            found.setdefault(place, []).append(watcher)
    return found
