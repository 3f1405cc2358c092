"""How alike matched units are: the mean cosine of their weights, group by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block
from lightning_rebasin.symmetry.permutation import Permutation
from lightning_rebasin.symmetry.spec import PermutationSpec


def similarities(
    spec: PermutationSpec,
    blocks: Iterable[Block],
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permutation: Permutation,
) -> dict[str, float]:
    """Mean over the units of each group of the cosine between all weights of a unit and of its match.

    Args:
        spec: The spec.
        blocks: Its blocks.
        reference: Weights A.
        source: Weights B.
        permutation: π, applied to B first.

    Returns:
        Cosine by group id; groups without any weight in the objective are left out.
    """
    sums: dict[str, Tensor] = {}
    flats = {group: permutation.flat(group) for group in spec.groups}
    for block in blocks:
        if any(block.joint_segment(axis) for axis in range(len(block.axes))):
            continue
        a = block.take(reference[block.tensor].detach())
        b = block.take(source[block.tensor].detach()).to(a.device)
        for axis, groups in enumerate(block.axes):
            if groups:
                b = b.index_select(axis, flats[groups[0]].to(b.device))
        for axis, groups in enumerate(block.axes):
            if groups:
                rows_a, rows_b = (t.movedim(axis, 0).reshape(t.shape[axis], -1).float() for t in (a, b))
                part = torch.stack([(rows_a * rows_b).sum(1), rows_a.square().sum(1), rows_b.square().sum(1)]).cpu()
                sums[groups[0]] = sums.get(groups[0], torch.zeros_like(part)) + part
    found = {}
    for group, (dot, aa, bb) in sums.items():
        found[group] = float((dot / (aa * bb).sqrt().clamp_min(1e-30)).mean())
    return found
