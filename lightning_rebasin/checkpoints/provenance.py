"""How an output was made: what is written into it, and what the report says about the inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.checkpoints.align import Aligned
from lightning_rebasin.checkpoints.average import permuted
from lightning_rebasin.checkpoints.heads import Heads
from lightning_rebasin.checkpoints.report import InputFile
from lightning_rebasin.matching.objective import inner_product
from lightning_rebasin.symmetry import PermutationSpec
from lightning_rebasin.version import __version__


def provenance(
    inputs: Sequence[InputFile],
    method: str,
    statistics: str,
    aligned: Aligned,
    spec: PermutationSpec | None,
    *,
    heads: Heads | None = None,
    untied: tuple[str, ...] = (),
) -> dict[str, Any]:
    """How the output was made: plain values and LongTensors."""
    history: dict[str, Any] = {
        "version": __version__,
        "method": method,
        "statistics": statistics,
        "inputs": [
            {
                "name": file.path.name,
                "sha256": file.sha256,
                "format": file.format,
                "weight": file.weight,
            }
            for file in inputs
        ],
    }
    if heads is not None:
        history["heads"] = {
            "layer": heads.layer,
            "sizes": list(heads.sizes),
        }
    if untied:
        history["untied"] = list(untied)
    if spec is not None and aligned.objectives:
        history["spec"] = json.dumps(spec.to_dict())
        history["kinds"] = kinds_of(spec)
        history["permutations"] = [
            None if p is None else dict(p.elements)
            for p in aligned.permutations
        ]
        history["objectives"] = [list(pair) for pair in aligned.objectives]
    return history


def kinds_of(spec: PermutationSpec) -> list[str]:
    """The kinds of symmetry of a spec, in alphabetical order.

    Example:
        >>> kinds_of(PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)}))
        ['permutation']
    """
    return sorted({group.kind for group in spec.groups.values()})


def cosines(
    states: Sequence[Mapping[str, Tensor]],
    aligned: Aligned,
    *,
    progress: bool = False,
) -> list[tuple[float, float]]:
    """Cosine of each model to the first one over its weights of two or more axes, before and after matching.

    Vectors are left out: the gains of norms are all near 1, which makes any two networks look alike.  Only a network
    that has nothing else is compared by them.
    """
    floating = [
        name
        for name, tensor in states[0].items()
        if tensor.is_floating_point()
        and not name.endswith(("running_mean", "running_var"))
    ]
    matrices = [name for name in floating if states[0][name].ndim > 1]
    names = matrices or floating
    result = []
    for state, permutation in zip(
        states[1:], aligned.permutations[1:], strict=True
    ):
        sums = torch.zeros(4, dtype=torch.float64)
        for name in tqdm(names, "comparing", disable=not progress):
            a, b = states[0][name], state[name]
            moved = permuted(state, name, permutation)
            sums += torch.tensor(
                [
                    inner_product(x, y)
                    for x, y in ((a, b), (a, moved), (a, a), (b, b))
                ]
            )
        scale = float((sums[2] * sums[3]).sqrt()) or 1.0
        result.append((float(sums[0]) / scale, float(sums[1]) / scale))
    return result
