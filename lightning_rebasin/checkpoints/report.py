"""What a merge did, and what a person should make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_rebasin.checkpoints.heads import Heads
from lightning_rebasin.matching import ManyMatchResult, MatchResult
from lightning_rebasin.merging import LayerFit, LeftLayer
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@dataclass(frozen=True)
class InputFile:
    """One of the merged files.

    Args:
        path: Where it is.
        sha256: Digest of the file.
        format: Who wrote it.
        weight: Its share in the merge.
        filled: Tensors that it lacks and that the model's own, or another name of them, stand in for.
    """

    path: Path
    sha256: str
    format: str
    weight: float
    filled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One alignment that was tried.

    Args:
        method: How the models were aligned.
        scores: Held-out score by correction, lower is better; a refit only where it was worth trying.
    """

    method: str
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class MergeReport:
    """Everything that was found out while merging.

    Args:
        inputs: The files.
        output: The file written, ``None`` for a dry run.
        method: How the models were aligned.
        statistics: What was done to the merged weights: ``"none"``, ``"reset"``, ``"repair"`` or ``"refit"``.
        permutations: What was applied to each model, ``None`` where nothing moved.
        matches: How each model but the first was matched to it.
        many: How all were matched at once.
        errors: Relative output error of each permuted model in float64; empty if there was no module to run.
        cosines: Cosine of each model but the first to the first, before and after matching.
        evaluation: Metrics by row: each file, ``naive average``, ``ensemble`` (mean of the outputs), ``merged``.
        variances: Mean variance ratio of the activations before and after REPAIR.
        batch_norms: Number of layers with running statistics.
        dropped: Metadata of the first file that the output does not keep.
        spec: What was permuted.
        seconds: Wall time.
        trials: The alignments that were compared; empty if nothing was left open.
        criterion: What their scores are: ``"distance"`` to the mean outputs, relative to its variance, or ``"loss"``.
        fits: How well each layer was refitted.
        left: Layers that were not refitted, and why.
        data: Whose data were given, as far as anybody said.
        heads: Which outputs are whose classes, if the heads were put side by side.
        untied: Tied names that have tensors of their own in the output.
        advice: What a person should know or do.
    """

    inputs: tuple[InputFile, ...]
    output: Path | None
    method: str
    statistics: str
    permutations: tuple[Transform | None, ...]
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
    trials: tuple[Trial, ...] = ()
    criterion: str = ""
    fits: tuple[LayerFit, ...] = ()
    left: tuple[LeftLayer, ...] = ()
    data: tuple[str, ...] = ()
    heads: Heads | None = None
    untied: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def matched(self) -> bool:
        """Whether the models were aligned by matching."""
        return bool(self.matches) or self.many is not None

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each input that no other one has: the file's, with as many folders as it takes."""
        return shortest_names([file.path for file in self.inputs])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "inputs": [
                {
                    **vars(file),
                    "path": str(file.path),
                    "filled": list(file.filled),
                }
                for file in self.inputs
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
            "trials": [
                {"method": trial.method, "scores": dict(trial.scores)}
                for trial in self.trials
            ],
            "criterion": self.criterion,
            "refit": [vars(fit) for fit in self.fits],
            "not_refitted": [vars(layer) for layer in self.left],
            "data": list(self.data),
            "heads": self._outputs(),
            "untied": list(self.untied),
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
            if file.filled:
                lines.append(
                    f"    lacks {', '.join(file.filled)}: taken from the model, or from a tied weight"
                )
        if self.heads is not None:
            lines.append(self.heads.described(self.names))
        lines += self._measurements()
        lines += [f"dropped: {name}" for name in self.dropped]
        lines += [f"- {sentence}" for sentence in self.advice]
        if self.output is None:
            lines.append("nothing was written (dry run)")
        else:
            lines.append(f"wrote {self.output}")
        return "\n".join(lines)

    def _outputs(self) -> dict[str, Any] | None:
        """First and last output of each model, and what else is known of the heads."""
        heads = self.heads
        if heads is None:
            return None
        ranges = [list(pair) for pair in heads.ranges]
        return {
            "layer": heads.layer,
            "outputs": dict(zip(self.names, ranges, strict=True)),
            "parameter": heads.parameter,
        }

    def _measurements(self) -> list[str]:
        """What was measured, one line each, then the table of metrics."""
        lines = []
        first, *others = self.names
        for name, pair in zip(others, self.cosines, strict=True):
            matched = f", matched {pair[1]:.3f}" if self.matched else ""
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
        if self.trials:
            lines += _trials(self.trials, self.criterion)
        if self.fits:
            lines.append(
                f"refitted {len(self.fits)} layers, left {len(self.left)} weights"
            )
            lines += [f"  {layer.name}: {layer.reason}" for layer in self.left]
        return lines + (_table(self.evaluation) if self.evaluation else [])


def shortest_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart.

    Example:
        >>> shortest_names([Path("run1/best.ckpt"), Path("run2/best.ckpt")])
        ('run1/best.ckpt', 'run2/best.ckpt')
    """
    longest = max((len(path.parts) for path in paths), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return tuple(names)
    return tuple(str(path) for path in paths)


def _trials(trials: Sequence[Trial], criterion: str) -> list[str]:
    """What was compared, one alignment a line."""
    what = "loss"
    if criterion == "distance":
        what = "distance to the ends' mean outputs"
    lines = [f"held-out {what} by alignment and correction (lower is better):"]
    rows: dict[str, dict[str, float]] = {}
    for trial in trials:
        rows[f"  {trial.method}"] = dict(trial.scores)
    return lines + _table(rows)


def _table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = list(
        dict.fromkeys(metric for row in rows.values() for metric in row)
    )
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {name:>12}" for name in names)]
    for name, row in rows.items():
        cells = []
        for metric in names:
            known = metric in row
            cells.append(f"{row[metric]:>12.4f}" if known else f"{'–':>12}")
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return lines
