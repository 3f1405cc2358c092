"""Which biases an attention cancels, and which it passes on to the map behind it.

The entries of a bias are followed to the keys and to the values of every attention (:mod:`.turns`).  Keys that nothing
turns or normalises in between lose them to the softmax; values keep them, and what comes out of the attention is
followed to the projection that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous.attentions import (
    Attention,
    attentions_of,
    consumers_of,
    next_product,
)
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.projections import (
    Projections,
    Rows,
)
from lightning_rebasin.symmetry.continuous.turns import Follower, Origins
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.spec.passed_biases import PassedBias
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def find_passed_biases(
    spec: PermutationSpec, passes: Sequence[Context]
) -> tuple[PassedBias, ...]:
    """Propose biases that may be 0.

    Args:
        spec: The spec.
        passes: The last pass of the first analysis over each tape; the first one decides.
    """
    if not passes:
        return ()
    projections = Projections(passes[0].tape)
    search = _Search(spec, projections)
    found: dict[PassedBias, None] = {}
    for attention in attentions_of(projections):
        found.update(dict.fromkeys(search.cancelled(attention)))
        found.update(dict.fromkeys(search.passed_on(attention)))
    return tuple(found)


class _Search:
    """Looks at the attentions of one tape."""

    def __init__(
        self, spec: PermutationSpec, projections: Projections
    ) -> None:
        self._spec = spec
        self._projections = projections
        self._follower = Follower(projections)
        self._consumers = consumers_of(projections)

    def cancelled(self, attention: Attention) -> Iterator[PassedBias]:
        """What is added to all keys alike."""
        positions = -2 if attention.fused else -1
        origins = self._plain(attention.key, positions)
        if origins is None:
            return
        columns = torch.tensor(sorted(set(origins.low.reshape(-1).tolist())))
        for rows in self._biases(origins):
            yield PassedBias(rows.tensor, _entries(rows, columns))

    def passed_on(self, attention: Attention) -> Iterator[PassedBias]:
        """What is added to all values, if a projection with a bias reads the attention."""
        origins = self._plain(attention.value, -2)
        reader = next_product(self._consumers, attention.output)
        if origins is None or reader is None or not self._biases(origins):
            return
        node, value = reader
        rows = self._projections.rows_of(node)
        if rows is None or len(rows) != 2 or not all(map(self._whole, rows)):
            return
        weight, into = rows
        columns = self._columns(attention, origins, value)
        if columns is None:
            return
        for bias in self._biases(origins):
            entries = _entries(bias, columns)
            yield PassedBias(
                bias.tensor,
                entries,
                weight.tensor,
                1 - weight.dim,
                into.tensor,
            )

    def _plain(self, value: int, positions: int) -> Origins | None:
        """Origins of keys or values of which each comes from one column, the same at all positions."""
        if value < 0:
            return None
        try:
            origins = self._follower.of(value)
        except Limit:
            return None
        if origins is None or not origins.is_plain:
            return None
        return origins if origins.low.shape[positions] == 1 else None

    def _columns(
        self, attention: Attention, origins: Origins, value: int
    ) -> Tensor | None:
        """For each input of the projection behind an attention the column that it comes from."""
        tape = self._projections.tape
        heads = tape.values[attention.output].shape[:-2]
        given = origins
        if attention.fused and len(heads) > 1:
            own = origins.low.shape[-3]
            each = heads[-1] // own if own > 1 else 1
            given = origins.changed(lambda t: t.repeat_interleave(each, -3))
        self._follower.know(attention.output, given)
        try:
            found = self._follower.of(value)
        except Limit:
            return None
        count = tape.values[value].shape[-1]
        if found is None or found.low.numel() != found.low.shape[-1]:
            return None
        return found.low.reshape(-1).expand(count)

    def _biases(self, origins: Origins) -> list[Rows]:
        shapes = self._spec.tensors
        return [r for r in origins.rows if len(shapes[r.tensor].shape) == 1]

    def _whole(self, rows: Rows) -> bool:
        """Whether a projection uses all of a tensor, in its order."""
        size = self._spec.tensors[rows.tensor].shape[rows.dim]
        return torch.equal(rows.places, torch.arange(size))


def _entries(rows: Rows, columns: Tensor) -> tuple[int, ...]:
    return tuple(rows.places[columns].tolist())
