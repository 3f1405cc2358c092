"""What a merge did, and what a person should make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_rebasin.matching import ManyMatchResult, MatchResult
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@dataclass(frozen=True)
class InputFile:
    """One of the merged files.

    Args:
        path: Where it is.
        sha256: Digest of the file.
        format: Who wrote it.
        weight: Its share in the merge.
    """

    path: Path
    sha256: str
    format: str
    weight: float


@dataclass(frozen=True, eq=False)
class MergeReport:
    """Everything that was found out while merging.

    Args:
        inputs: The files.
        output: The file written, ``None`` for a dry run.
        method: How the models were aligned.
        statistics: What was done to the activation statistics: ``"none"``, ``"reset"`` or ``"repair"``.
        permutations: What was applied to each model, ``None`` where nothing moved.
        matches: How each model but the first was matched to it.
        many: How all were matched at once.
        errors: Relative output error of each permuted model in float64; empty if there was no module to run.
        cosines: Cosine of each model but the first to the first, before and after matching.
        evaluation: Metrics by row: each file, ``naive average``, ``merged``.
        variances: Mean variance ratio of the activations before and after REPAIR.
        batch_norms: Number of layers with running statistics.
        dropped: Metadata of the first file that the output does not keep.
        spec: What was permuted.
        seconds: Wall time.
        advice: What a person should know or do.
    """

    inputs: tuple[InputFile, ...]
    output: Path | None
    method: str
    statistics: str
    permutations: tuple[Permutation | None, ...]
    matches: tuple[MatchResult, ...]
    many: ManyMatchResult | None
    errors: tuple[float, ...]
    cosines: tuple[tuple[float, float], ...]
    evaluation: Mapping[str, Mapping[str, float]]
    variances: tuple[float, float] | None
    batch_norms: int
    dropped: tuple[str, ...]
    spec: PermutationSpec | None
    seconds: float
    advice: tuple[str, ...] = ()

    @property
    def matched(self) -> bool:
        """Whether the models were aligned by matching."""
        return bool(self.matches) or self.many is not None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "inputs": [
                {**vars(file), "path": str(file.path)} for file in self.inputs
            ],
            "output": None if self.output is None else str(self.output),
            "method": self.method,
            "statistics": self.statistics,
            "matches": [match.to_dict() for match in self.matches],
            "many": None if self.many is None else self.many.to_dict(),
            "equivalence_errors": list(self.errors),
            "cosines": [list(pair) for pair in self.cosines],
            "evaluation": {
                name: dict(row) for name, row in self.evaluation.items()
            },
            "variance_ratio": None
            if self.variances is None
            else list(self.variances),
            "batch_norms": self.batch_norms,
            "dropped": list(self.dropped),
            "log10_symmetries": None
            if self.spec is None
            else self.spec.log10_symmetries,
            "seconds": self.seconds,
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        models = f"{len(self.inputs)} models"
        if len(self.inputs) == 1:
            models = "1 model"
        how = f"method {self.method}, statistics {self.statistics}"
        lines = [f"{models}, {how}, {self.seconds:.1f} s"]
        for file in self.inputs:
            lines.append(f"  {file.weight:.3g} × {file.path} ({file.format})")
        lines += self._measurements()
        lines += [f"dropped: {name}" for name in self.dropped]
        lines += [f"- {sentence}" for sentence in self.advice]
        if self.output is None:
            lines.append("nothing was written (dry run)")
        else:
            lines.append(f"wrote {self.output}")
        return "\n".join(lines)

    def _measurements(self) -> list[str]:
        """What was measured, one line each, then the table of metrics."""
        lines = []
        first = self.inputs[0].path.name
        for file, pair in zip(self.inputs[1:], self.cosines, strict=True):
            matched = f", matched {pair[1]:.3f}" if self.matched else ""
            name = file.path.name
            lines.append(
                f"cosine of {name} to {first}: {pair[0]:.3f}{matched}"
            )
        if self.errors:
            lines.append(
                f"permuted models compute the same function: relative error {max(self.errors):.0e}"
            )
        if self.variances is not None:
            before, after = self.variances
            lines.append(
                f"variance of the activations: {before:.2f} → {after:.2f} of the ends'"
            )
        return lines + (_table(self.evaluation) if self.evaluation else [])


def _table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = list(
        dict.fromkeys(metric for row in rows.values() for metric in row)
    )
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {name:>12}" for name in names)]
    for name, row in rows.items():
        lines.append(
            f"{name:<{width}}"
            + "".join(
                f"  {row.get(metric, float('nan')):>12.4f}" for metric in names
            )
        )
    return lines
