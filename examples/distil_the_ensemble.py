"""Distil the ensemble of two ResNet-20s into one network: the honest rival of ``refit``, with the same images.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    OMP_NUM_THREADS=1 python examples/distil_the_ensemble.py                # 8 short and 8 ten times longer runs
    OMP_NUM_THREADS=1 python examples/distil_the_ensemble.py --steps 60     # the short ones alone
    OMP_NUM_THREADS=1 python examples/distil_the_ensemble.py --cases s1+s2 --steps 60 180

One step takes about .7 CPU seconds on one core, so 60 steps are about what ``refit`` takes: nine minutes of CPU for
the short runs with three merges; 600 steps take seven minutes a run, 55 in all.  Each has its own cosine schedule.
The table (Markdown), the numbers (JSON) and a picture (PNG) in examples/results/distil_the_ensemble are written anew
after every run; rows that are there already are kept, and refitted networks lie in its folder ``runs``.

A run starts from the better end, chosen by its test accuracy (which favours it), or from the refitted network.
The teacher sees the images that the student sees.  Its softmax of mean logits is that of mean log-probabilities: the
two differ by a number per image.  Disjoint classes are distilled with squared errors of the mean logits, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, pad
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.models import ResNet20
from refit_resnet20 import Score, Study, align, network

from lightning_rebasin import refit
from lightning_rebasin.files import atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results" / "distil_the_ensemble"
LOSSES = ("divergence", "squares")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "d1+d2": ("cifar10-split", LOSSES),
    "s1+s2": ("cifar10-split", ("divergence",)),
    "a+b": ("cifar10-resnet20", ("divergence",)),
}
STARTS = ("end", "refit")
TRAIN, TEST = 2000, 2000
BATCH, PADDING = 128, 4
#: CPU seconds that the picture names.
TICKS = (20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Merge:
    """What is known of a pair before anything is distilled; CPU seconds."""

    case: str
    ends: list[Score]
    ensemble: Score
    refit: Score
    align_seconds: float
    refit_seconds: float


@dataclass(frozen=True)
class Run:
    """One distillation, measured on the test images; CPU seconds without what its start took."""

    case: str
    loss: str
    start: str
    steps: int
    score: Score
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from other runs."""
        return self.case, self.loss, self.start, self.steps


@dataclass(frozen=True)
class Results:
    """All that was measured so far."""

    merges: list[Merge] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path) -> Results:
        """Read what :meth:`save` wrote; nothing where there is no file."""
        if not file.exists():
            return cls()
        saved = json.loads(file.read_text())
        merges, runs = [], []
        for row in saved["merges"]:
            row["ends"] = [Score(**end) for end in row["ends"]]
            for name in ("ensemble", "refit"):
                row[name] = Score(**row[name])
            merges.append(Merge(**row))
        for row in saved["runs"]:
            runs.append(Run(score=Score(**row.pop("score")), **row))
        return cls(merges, runs)

    def save(self, folder: Path) -> None:
        """Write numbers, table and picture."""
        numbers = json.dumps(asdict(self), indent=1)
        atomic_write_text(folder / "numbers.json", numbers + "\n")
        atomic_write_text(folder / "table.md", self.table())
        picture(self, folder / "accuracy.png")

    def of(self, case: str, loss: str, start: str) -> list[Run]:
        """Runs that differ in their length alone, the short ones first."""
        wanted = (case, loss, start)
        found = [run for run in self.runs if run.key[:3] == wanted]
        return sorted(found, key=lambda run: run.steps)

    def table(self) -> str:
        """The results as Markdown."""
        lengths = sorted({run.steps for run in self.runs})
        heads = [f"{steps} steps" for steps in lengths]
        lines = [
            "# Distilling the ensemble, beside refit",
            "",
            f"Accuracy in % on {TEST} test images (CPU seconds); {TRAIN} training images without labels.  Made by",
            "`examples/distil_the_ensemble.py`.  The seconds of `refit` are its alignment + itself, and come on top",
            "where a run starts from its network; `–` was not run.",
            "",
            f"| {' | '.join(['networks', 'ends', 'ensemble', 'loss', 'start', 'before', *heads])} |",
            f"|---|---|--:|---|---|{'--:|' * (1 + len(heads))}",
        ]
        for merge in self.merges:
            for loss in CASES[merge.case][1]:
                for start in STARTS:
                    cells = self._cells(merge, loss, start, lengths)
                    lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def _cells(
        self, merge: Merge, loss: str, start: str, lengths: Sequence[int]
    ) -> list[str]:
        ends = ", ".join(_percent(end) for end in merge.ends)
        before = _percent(better(merge))
        if start == "refit":
            seconds = f"{merge.align_seconds:.0f} + {merge.refit_seconds:.0f}"
            before = f"{_percent(merge.refit)} ({seconds})"
        runs = {run.steps: run for run in self.of(merge.case, loss, start)}
        cells = [merge.case, ends, _percent(merge.ensemble)]
        cells += [loss, "better end" if start == "end" else start, before]
        for steps in lengths:
            run = runs.get(steps)
            cells.append(
                f"{_percent(run.score)} ({run.seconds:.0f})" if run else "–"
            )
        return cells


def _percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f}"


def better(merge: Merge) -> Score:
    """The end that distillation starts from."""
    return max(merge.ends, key=lambda end: end.accuracy)


class Pair:
    """Two networks, their refit, and their distillation."""

    def __init__(self, case: str, folder: Path) -> None:
        self.case = case
        self.file = folder / "runs" / f"{case}.pt"
        self.study = Study(CASES[case][0], TRAIN, TEST)
        self.names = case.split("+")
        states = [self.study.load(name) for name in self.names]
        self.ends = [fast(network(state)) for state in states]

    def merge(self) -> Merge:
        """Align and refit; the network is kept for :meth:`distil`."""
        study = self.study
        states = [study.load(name) for name in self.names]
        begin = time.process_time()
        aligned = align(study.spec, states, "activations", study.batches)
        middle = time.process_time()
        module = refit(ResNet20().eval(), aligned, study.batches).module
        end = time.process_time()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), self.file)
        logits = [study.end_logits(name) for name in self.names]
        return Merge(
            self.case,
            [study.score(each) for each in logits],
            study.score(torch.stack(logits).mean(0)),
            study.score(module),
            round(middle - begin, 1),
            round(end - middle, 1),
        )

    def distil(self, merge: Merge, loss: str, start: str, steps: int) -> Run:
        """Train on the ensemble's outputs, and measure."""
        student = self._student(merge, start)
        optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        images = torch.cat(list(self.study.batches))
        begin = time.process_time()
        student.train()
        for x in augmented(images, steps):
            with torch.no_grad():
                target = torch.stack([end(x) for end in self.ends]).mean(0)
            found = student(x)
            if loss == "squares":
                error = mse_loss(found, target)
            else:
                error = cross_entropy(found, target.softmax(1))
            optimiser.zero_grad()
            torch.autograd.backward(error)
            optimiser.step()
            schedule.step()
        seconds = time.process_time() - begin
        score = self.study.score(student)
        return Run(self.case, loss, start, steps, score, round(seconds, 1))

    def _student(self, merge: Merge, start: str) -> ResNet20:
        if start == "end":
            name = self.names[merge.ends.index(better(merge))]
            return fast(network(self.study.load(name)))
        return fast(network(torch.load(self.file, weights_only=True)))


def fast(module: ResNet20) -> ResNet20:
    """The network in the memory format that is faster on a CPU."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(
                memory_format=torch.channels_last
            )
    return module


def augmented(images: Tensor, steps: int) -> Iterator[Tensor]:
    """Batches with random flips and crops; the same ones in every run."""
    generator = torch.Generator().manual_seed(0)
    padded = pad(images, (PADDING,) * 4).permute(0, 2, 3, 1)
    ramp = torch.arange(images.shape[-1])
    for _ in range(steps):
        order = torch.randperm(len(images), generator=generator)
        chosen = order[:BATCH, None, None]
        shifts = torch.randint(
            2 * PADDING + 1, (2, BATCH, 1), generator=generator
        )
        flips = torch.rand(BATCH, 1, generator=generator) < 0.5
        rows = shifts[0] + ramp
        columns = shifts[1] + torch.where(flips, ramp.flip(0), ramp)
        crops = padded[chosen, rows[:, :, None], columns[:, None, :]]
        yield crops.permute(0, 3, 1, 2)


def picture(results: Results, path: Path) -> None:
    """Accuracy over CPU seconds, one panel per pair and loss."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        (merge, loss)
        for merge in results.merges
        for loss in CASES[merge.case][1]
        if any(results.of(merge.case, loss, start) for start in STARTS)
    ]
    if not panels:
        return
    figure, grid = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 4), squeeze=False
    )
    for axis, (merge, loss) in zip(grid[0], panels, strict=True):
        spent = merge.align_seconds + merge.refit_seconds
        refitted = 100 * merge.refit.accuracy
        for start, colour, before in (
            ("end", "C0", []),
            ("refit", "C1", [(spent, refitted)]),
        ):
            points = list(before)
            for run in results.of(merge.case, loss, start):
                seconds = run.seconds + (spent if before else 0)
                points.append((seconds, 100 * run.score.accuracy))
            label = "distilled from " + ("refit" if before else "better end")
            if points:
                axis.plot(*zip(*points, strict=True), "o-", c=colour)
                axis.lines[-1].set_label(label)
        axis.plot(spent, refitted, "k*", ms=14, label="alignment + refit")
        for score, style, label in (
            (better(merge), "--", "better end"),
            (merge.ensemble, ":", "ensemble"),
        ):
            axis.axhline(100 * score.accuracy, c="k", ls=style, label=label)
        axis.set_xscale("log")
        axis.set_xlim(20, 1000)
        # The numbers that a logarithmic axis writes by itself overlap.
        axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.set_title(f"{merge.case}, {loss}")
        axis.set_xlabel("CPU seconds")
        axis.grid(alpha=0.3, which="both")
    grid[0][0].set_ylabel("test accuracy in %")
    figure.legend(
        *grid[0][-1].get_legend_handles_labels(), loc="lower center", ncol=5
    )
    plt.tight_layout(rect=(0, 0.08, 1, 1))
    plt.savefig(path, dpi=110)
    plt.close()


def main() -> None:
    """Measure what is not known yet, and write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=list(CASES)
    )
    parser.add_argument(
        "--starts", nargs="+", choices=STARTS, default=list(STARTS)
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[60, 600])
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results.load(args.output / "numbers.json")
    known = {run.key for run in results.runs}
    # the short ones of all pairs first
    wanted = [
        (case, loss, start, steps)
        for steps in args.steps
        for loss in LOSSES
        for case in args.cases
        for start in args.starts
        if loss in CASES[case][1] and (case, loss, start, steps) not in known
    ]
    pairs: dict[str, Pair] = {}
    merges = {merge.case: merge for merge in results.merges}
    for case, loss, start, steps in tqdm(wanted, desc="runs"):
        if case not in pairs:
            pairs[case] = Pair(case, args.output)
        pair = pairs[case]
        if case not in merges or not pair.file.exists():
            fresh = pair.merge()
            # times of an earlier call stay
            if case not in merges:
                merges[case] = fresh
                results.merges.append(fresh)
                results.save(args.output)
        results.runs.append(pair.distil(merges[case], loss, start, steps))
        results.save(args.output)
    results.save(args.output)
    print(results.table())


if __name__ == "__main__":
    main()
