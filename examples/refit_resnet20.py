"""Merge CIFAR-10 ResNet-20s by least squares: ten pairs and all five, aligned by weights and by activations.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    python examples/refit_resnet20.py

writes a table (Markdown), its numbers (JSON) and a picture (PNG) to examples/results/refit_resnet20.  A merge takes
about three minutes on one core, all of them half an hour; rows that are in the JSON file already are kept.  With
``--split`` the networks of other people are replaced by two pairs that were trained on parts of the classes.
Expected output: examples/results/refit_resnet20/table.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.data import cifar10, normalise
from helpers.models import ResNet20, load_weights
from helpers.shared import shared_path

from lightning_rebasin import (
    PermutationSpec,
    average,
    infer_spec,
    match_activations,
    match_many,
    match_weights,
    refit,
    repair,
    reset_batch_norm,
)
from lightning_rebasin.files import atomic_write_text

Weights = Mapping[str, Tensor]
RESULTS = Path(__file__).resolve().parent / "results" / "refit_resnet20"
CHECKPOINTS = {
    "cifar10-resnet20": "{}.th",
    "cifar10-split": "{}.pt",
}


@dataclass(frozen=True)
class Score:
    """Accuracy and loss on the test images."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Row:
    """One merge, measured on the test images."""

    models: list[str]
    alignment: str
    ends: list[Score]
    ensemble: Score
    naive: Score
    reset: Score
    repair: Score
    refit: Score
    method: str
    seconds: float


class Study:
    """Images and networks, and what is known of single networks."""

    def __init__(self, folder: str, train: int, test: int) -> None:
        self.folder = folder
        images, self.labels = cifar10("test", test)
        # this memory format is faster on a CPU
        self.images = normalise(images, "cifar10-resnet20").contiguous(
            memory_format=torch.channels_last
        )
        self.batches = (
            normalise(cifar10("train", train)[0], "cifar10-resnet20")
            .contiguous(memory_format=torch.channels_last)
            .split(250)
        )
        self.spec = infer_spec(ResNet20(), self.images[:2])
        self._logits: dict[str, Tensor] = {}

    def load(self, name: str) -> dict[str, Tensor]:
        """Weights of one checkpoint; the oldest one lacks batch counters, which the module supplies."""
        file = CHECKPOINTS[self.folder].format(name)
        path = shared_path(f"data/checkpoints/{self.folder}/{file}")
        model = ResNet20()
        model.load_state_dict(load_weights(path), strict=False)
        return model.state_dict()

    def logits(self, module: nn.Module) -> Tensor:
        """Outputs on the test images."""
        with torch.no_grad():
            parts = [module.eval()(x) for x in self.images.split(250)]
        return torch.cat(parts)

    def score(self, module: nn.Module | Tensor) -> Score:
        """Accuracy and loss of a network or of logits."""
        logits = module if isinstance(module, Tensor) else self.logits(module)
        right = (logits.argmax(1) == self.labels).double().mean()
        loss = cross_entropy(logits, self.labels)
        return Score(float(right), float(loss))

    def end_logits(self, name: str) -> Tensor:
        """Outputs of one end."""
        if name not in self._logits:
            self._logits[name] = self.logits(network(self.load(name)))
        return self._logits[name]

    def merge(self, names: Sequence[str], alignment: str) -> Row:
        """Align the named networks, and merge them in every way."""
        states = [self.load(name) for name in names]
        aligned = align(self.spec, states, alignment, self.batches)
        model = ResNet20().eval()
        naive = network(average(aligned))
        reset = reset_batch_norm(naive, self.batches)
        repaired = repair(model, aligned, self.batches).module
        start = time.process_time()
        result = refit(model, aligned, self.batches)
        seconds = time.process_time() - start
        ends = [self.end_logits(name) for name in names]
        return Row(
            list(names),
            alignment,
            [self.score(logits) for logits in ends],
            self.score(torch.stack(ends).mean(0)),
            self.score(naive),
            self.score(reset),
            self.score(repaired),
            self.score(result.module),
            result.method,
            round(seconds, 1),
        )


def network(weights: Weights) -> ResNet20:
    """A ResNet-20 with these weights, in eval mode."""
    model = ResNet20().eval()
    model.load_state_dict(weights)
    return model


def align(
    spec: PermutationSpec,
    states: Sequence[Weights],
    alignment: str,
    batches: Sequence[Tensor],
) -> list[Weights]:
    """Bring all networks into the basis of the first one."""
    if alignment == "weights" and len(states) > 2:
        found = match_many(spec, states).permutations
        pairs = zip(found, states, strict=True)
        return [permutation.apply(state) for permutation, state in pairs]
    first, *others = states
    aligned = [first]
    for other in others:
        if alignment == "weights":
            result = match_weights(spec, first, other)
        else:
            result = match_activations(
                spec,
                network(first),
                network(other),
                batches,
                statistic="correlation",
            )
        aligned.append(result.permutation.apply(other))
    return aligned


def table(rows: Sequence[Row], train: int, test: int) -> str:
    """The rows as Markdown."""
    lines = [
        "# ResNet-20s merged by least squares",
        "",
        f"Accuracy in % (loss in nats) on {test} test images; {train} training images without labels.",
        "Made by `examples/refit_resnet20.py`; `seconds` are CPU seconds of `refit` alone.",
        "",
        "| models | aligned by | ends | ensemble | average | reset | REPAIR | refit | seconds |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ends = ", ".join(f"{100 * end.accuracy:.1f}" for end in row.ends)
        scores = [row.ensemble, row.naive, row.reset, row.repair, row.refit]
        cells = [f"{100 * s.accuracy:.1f} ({s.loss:.2f})" for s in scores]
        start = f"| {', '.join(row.models)} | {row.alignment} | {ends} |"
        lines.append(f"{start} {' | '.join(cells)} | {row.seconds} |")
    for alignment in ("weights", "activations"):
        pairs = [
            row.refit.accuracy
            for row in rows
            if row.alignment == alignment and len(row.models) == 2
        ]
        if pairs:
            mean = 100 * sum(pairs) / len(pairs)
            lowest = 100 * min(pairs)
            lines += [
                "",
                f"Refit of pairs aligned by {alignment}: mean {mean:.1f}, lowest {lowest:.1f}.",
            ]
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of every merge, one column per merge."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for axis, alignment in zip(axes, ("weights", "activations"), strict=True):
        chosen = [row for row in rows if row.alignment == alignment]
        labels = ["+".join(row.models) for row in chosen]
        for name in ("ensemble", "refit", "repair", "reset", "naive"):
            values = [100 * getattr(row, name).accuracy for row in chosen]
            axis.plot(labels, values, "o", label=name)
        axis.set_title(f"aligned by {alignment}")
        axis.tick_params(axis="x", rotation=60)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy in %")
    handles, names = axes[0].get_legend_handles_labels()
    plt.tight_layout(rect=(0, 0, 1, 0.93))
    # Above the axes, where it hides no point.
    figure.legend(handles, names, loc="upper center", ncols=len(names))
    plt.savefig(path, dpi=110)


def main() -> None:
    """Measure the merges that are not known yet, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument(
        "--split",
        action="store_true",
        help="networks that were trained on parts of the classes",
    )
    args = parser.parse_args()
    folder = "cifar10-split" if args.split else "cifar10-resnet20"
    groups = [list(pair) for pair in combinations("abcde", 2)]
    groups.append(list("abcde"))
    if args.split:
        groups = [["d1", "d2"], ["s1", "s2"]]
    study = Study(folder, args.train, args.test)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / f"{folder}-{args.train}-{args.test}.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    known = {("".join(row["models"]), row["alignment"]) for row in rows}
    wanted = [
        (names, alignment)
        for names in groups
        for alignment in ("activations", "weights")
        if ("".join(names), alignment) not in known
    ]
    for names, alignment in tqdm(wanted, desc="merges"):
        row = asdict(study.merge(names, alignment))
        rows.append(row)
        atomic_write_text(file, json.dumps(rows, indent=1) + "\n")
    found = [_row(row) for row in rows]
    text = table(found, args.train, args.test)
    stem = "table" if folder == "cifar10-resnet20" else folder
    suffix = "" if args.train == 2000 else f"-{args.train}"
    atomic_write_text(args.output / f"{stem}{suffix}.md", text)
    picture(found, args.output / f"{stem}{suffix}.png")
    print(text)


def _row(saved: Mapping[str, Any]) -> Row:
    """A row as it was saved."""
    made = dict(saved)
    made["ends"] = [Score(**end) for end in saved["ends"]]
    for name in ("ensemble", "naive", "reset", "repair", "refit"):
        made[name] = Score(**saved[name])
    return Row(**made)


if __name__ == "__main__":
    main()
