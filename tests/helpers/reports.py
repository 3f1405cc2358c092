"""Reports of merges that never ran: what is said about numbers that are chosen here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightning_rebasin.checkpoints.report import InputFile, MergeReport
from lightning_rebasin.matching.result import Descent, MatchResult
from lightning_rebasin.symmetry import Permutation, PermutationSpec

#: Two groups, of 4 and of 6 units.
SPEC = PermutationSpec.from_table(
    {"one.weight": ("g", None), "two.weight": ("h", "g")},
    {"one.weight": (4, 3), "two.weight": (6, 4)},
)
#: Every unit of the first group moves, none of the second.
MOVED = Permutation(
    SPEC, {"g": torch.tensor([1, 2, 3, 0]), "h": torch.arange(6)}
)


def match(
    *ends: float, same_basin: bool = False, objective: float = 10.0
) -> MatchResult:
    """A matching from an objective of 0, with one descent for every end."""
    descents = []
    for end in ends:
        objectives = (0.0, end)
        found = Descent("anywhere", objectives, converged=True, seconds=0.1)
        descents.append(found)
    return MatchResult(
        MOVED, objective, 0.0, tuple(descents), same_basin=same_basin
    )


def report(*names: str, **changes: Any) -> MergeReport:
    """A plain average of files that were never there, proved and without data; by default ``a.pt`` and ``b.pt``."""
    files = []
    paths = names or ("a.pt", "b.pt")
    for name in paths:
        share = 1 / len(paths)
        files.append(InputFile(Path(name), "abc", "torch", share))
    plain = MergeReport(
        inputs=tuple(files),
        output=Path("out.pt"),
        method="average",
        statistics="none",
        permutations=(None,) * len(files),
        matches=(),
        many=None,
        errors=(),
        cosines=((1.0, 1.0),) * (len(files) - 1),
        evaluation={},
        variances=None,
        batch_norms=0,
        dropped=(),
        spec=None,
        seconds=1.25,
    )
    return replace(plain, **changes)


def matched(
    before: float,
    after: float,
    *,
    ends: Sequence[float] = (10.0,),
    same_basin: bool = False,
    **changes: Any,
) -> MergeReport:
    """Two files matched by weights, with these cosines, and proved."""
    found = match(*ends, same_basin=same_basin)
    settings = {
        "method": "weight",
        "permutations": (None, MOVED),
        "matches": (found,),
        "errors": (1e-15,),
        "cosines": ((before, after),),
        "spec": SPEC,
    }
    return report(**{**settings, **changes})
