"""Merge two soft tree ensembles that were trained on different halves of a table which cannot be pooled.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    python examples/merge_soft_trees.py --data MagicTelescope california

The training part of a table is cut in two: at random, or by the median of the feature that says most about the label,
so that neither half sees what the other does.  One ensemble is trained on each half, both are merged without the data
of either (averages: naive, trees reordered, everything aligned) and with inputs but no labels (refit of the leaves).
Beside them stand the ensemble of both (mean of the logits) and one training on the whole table.  Rows, which hold test
accuracies in percent, go to examples/results/merge_soft_trees/rows.json; those that are there are kept.  Writes
table.md beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from soft_trees import TABLES, accuracy, load, trained
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from lightning_rebasin import infer_spec, interpolate, match_weights
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.trees import SoftTreeEnsemble, refit_leaves

RESULTS = Path(__file__).resolve().parent / "results" / "merge_soft_trees"
CUTS = ("random", "by feature")
WAYS = (
    "first",
    "second",
    "naive",
    "permutation",
    "all",
    "all, leaves refitted",
    "mean of logits",
    "whole table",
)
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Row:
    """One pair: test accuracy in percent of every way."""

    data: str
    cut: str
    pair: int
    accuracy: Mapping[str, float]

    @property
    def key(self) -> tuple[str, str, int]:
        """What was run."""
        return self.data, self.cut, self.pair


def halves(x: Tensor, y: Tensor, cut: str) -> tuple[Tensor, Tensor]:
    """Row numbers of the two halves."""
    if cut == "random":
        order = torch.randperm(
            len(x), generator=torch.Generator().manual_seed(0)
        )
    else:
        centred = y.float() - y.float().mean()
        telling = (x * centred[:, None]).mean(0).abs().argmax()
        order = x[:, telling].argsort()
    first, second = order.chunk(2)
    return first, second


def merges(
    ends: tuple[SoftTreeEnsemble, SoftTreeEnsemble], inputs: Tensor
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Weights of every way to merge."""
    a, b = (net.state_dict() for net in ends)
    yield "naive", interpolate(a, b, 0.5)
    for kinds in ("permutation", "all"):
        spec = infer_spec(ends[0], inputs[:8], kinds=kinds)
        moved = match_weights(spec, a, b).transform.apply(b)
        merged = interpolate(a, moved, 0.5)
        yield kinds, merged
    middle = trained_like(ends[0], merged)
    leaves = refit_leaves(middle, [a, b], inputs.split(2048), ridge=0.01)
    yield "all, leaves refitted", {**merged, "leaves": leaves}


def trained_like(
    net: SoftTreeEnsemble, state: Mapping[str, Tensor]
) -> SoftTreeEnsemble:
    """An ensemble of the same kind with other weights."""
    trees, _, features = net.weight.shape
    depth, outputs = net.shape.depth, net.leaves.shape[-1]
    made = SoftTreeEnsemble(net.kind, depth, trees, features, outputs)
    made.load_state_dict(dict(state))
    return made


class Mean(nn.Module):
    """The mean of what two networks say."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Mean of the logits."""
        return torch.stack([net(x) for net in self.networks]).mean(0)


def run(name: str, cut: str, pair: int, depth: int) -> Row:
    """Train on the halves and on the whole, merge, measure."""
    data = load(name)
    x, y = data.train
    seeds = 2 * pair, 2 * pair + 1
    parts = halves(x, y, cut)
    ends = tuple(
        trained("oblivious", depth, (x[rows], y[rows]), seed=seed)
        for rows, seed in zip(parts, seeds, strict=True)
    )
    found = {}
    with torch.no_grad():
        for way, net in zip(("first", "second"), ends, strict=True):
            found[way] = percent(net, data.test)
        for way, state in merges(ends, x):
            outputs = functional_call(ends[0], dict(state), data.test[0])
            right = outputs.argmax(1) == data.test[1]
            found[way] = 100 * right.float().mean().item()
        found["mean of logits"] = percent(Mean(*ends), data.test)
    whole = trained("oblivious", depth, data.train, seed=seeds[0])
    found["whole table"] = percent(whole, data.test)
    return Row(name, cut, pair, {k: round(v, 3) for k, v in found.items()})


def percent(net: nn.Module, batch: Batch) -> float:
    """Accuracy in percent."""
    with torch.no_grad():
        return 100 * accuracy(net, batch).item()


def table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over the pairs."""
    lines = [
        f"| table | cut | pairs | {' | '.join(WAYS)} |",
        "|---|---|--:|" + "--:|" * len(WAYS),
    ]
    keys = list(dict.fromkeys((row.data, row.cut) for row in rows))
    for name, cut in keys:
        own = [row for row in rows if (row.data, row.cut) == (name, cut)]
        cells = []
        for way in WAYS:
            values = [row.accuracy[way] for row in own]
            spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.2f}{spread}")
        lines.append(f"| {name} | {cut} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    option = parser.add_argument
    option("--data", nargs="+", choices=TABLES, default=TABLES[:1])
    option("--cuts", nargs="+", choices=CUTS, default=CUTS)
    option("--pairs", type=int, default=3, help="pairs of seeds")
    option("--depth", type=int, default=2, help="depth of the trees")
    option("--output", type=Path, default=RESULTS, help="where results go")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "rows.json"
    rows = [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []  # fmt: skip
    wanted = [
        (name, cut, pair)
        for pair in range(args.pairs)
        for name in args.data
        for cut in args.cuts
    ]
    for key in tqdm(wanted, unit="pair"):
        if key not in {row.key for row in rows}:
            rows.append(run(*key, args.depth))
            lines = [json.dumps(asdict(row)) for row in rows]
            atomic_write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")
    atomic_write_text(args.output / "table.md", table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
