"""Linear mode connectivity of soft trees: the study of Kanoh and Sugiyama (ICLR 2025) on six tables.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    python examples/soft_trees.py                             # two tables, three pairs, depths 1 to 3
    python examples/soft_trees.py --data pol heloc --minutes 9

trains pairs of ensembles that differ in their seed (quantile → normal features, Adam 1e-3, batches of 512, 50 epochs,
256 trees), aligns the second to the first, and measures by how many points the accuracy on the test part dips between
them (25 λ): as they are, with the trees reordered, and with everything that their kind allows.  A perceptron
with as many layers stands beside them.  Every run is a row of examples/results/soft_trees/rows.json; rows that are
there are kept, so a study can go on where it stopped.  Writes table.md and barriers.png beside it.  A pair takes 10 to
60 seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from sklearn.preprocessing import QuantileTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.shared import shared_path

from lightning_rebasin import (
    infer_spec,
    match_activations,
    match_weights,
    measure_barrier,
)
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.symmetry import Transform
from lightning_rebasin.trees import SoftTreeEnsemble

Weights = Mapping[str, Tensor]
RESULTS = Path(__file__).resolve().parent / "results" / "soft_trees"
TABLES = (
    "MagicTelescope",
    "california",
    "electricity",
    "bank-marketing",
    "pol",
    "heloc",
)
MODELS = (
    "oblivious",
    "non_oblivious",
    "decision_list",
    "modified_decision_list",
    "mlp",
)
WIDTH, EPOCHS, BATCH, RATE = 256, 50, 512, 1e-3
#: Columns of the table, and which of them a perceptron has.
WAYS = (
    "naive",
    "permutation",
    "all",
    "activation permutation",
    "activation all",
)
#: Test barriers of the paper in points: naive, permutation, all.  By table for D = 2, by depth over all tables.
PUBLISHED_TABLES = {
    ("MagicTelescope", "oblivious", 2): (2.01, 0.534, 0.093),
    ("california", "oblivious", 2): (6.58, 0.342, 0.034),
}
PUBLISHED_MEANS = {
    ("non_oblivious", 1): (8.97, 0.45, 0.18),
    ("non_oblivious", 2): (6.80, 0.811, 0.455),
    ("non_oblivious", 3): (5.60, 1.64, 0.74),
    ("oblivious", 1): (8.97, 0.45, 0.18),
    ("oblivious", 2): (7.88, 0.919, 0.348),
    ("oblivious", 3): (7.10, 1.28, 0.48),
    ("decision_list", 2): (7.51, None, 0.436),
    ("modified_decision_list", 2): (6.73, 0.468, None),
    ("mlp", 1): (8.76, 0.49, None),
    ("mlp", 2): (15.34, 3.00, None),
    ("mlp", 3): (15.92, 5.94, None),
}


#: Table, model, depth, step size, number of the pair.
Key = tuple[str, str, int, float, int]


@dataclass(frozen=True)
class Data:
    """A table, split 70 : 30, its features normal."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def features(self) -> int:
        """Number of features."""
        return self.train[0].shape[1]


@dataclass(frozen=True)
class Row:
    """One pair of trainings: accuracies in percent, barriers in points, and the curves behind them."""

    data: str
    model: str
    depth: int
    pair: int
    accuracy: tuple[float, float]
    barriers: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]
    seconds: float
    rate: float = RATE

    @property
    def key(self) -> Key:
        """What was run."""
        return self.data, self.model, self.depth, self.rate, self.pair


def load(name: str) -> Data:
    """A table; the split is the same for all runs, and the features are fitted to the training part."""
    table = np.load(shared_path(f"data/tabular/{name}.npz"))
    order = np.random.default_rng(0).permutation(len(table["y"]))
    first, rest = np.split(order, [int(0.7 * len(order))])
    scale = QuantileTransformer(output_distribution="normal", random_state=0)
    features = {
        "train": scale.fit_transform(table["X"][first]),
        "test": scale.transform(table["X"][rest]),
    }
    labels = {"train": table["y"][first], "test": table["y"][rest]}
    parts = {}
    for part, x in features.items():
        y = torch.from_numpy(labels[part])
        parts[part] = torch.from_numpy(x).float(), y
    return Data(**parts)


def network(model: str, depth: int, features: int) -> nn.Module:
    """An ensemble of 256 trees, or a perceptron with layers of 256 units."""
    if model != "mlp":
        return SoftTreeEnsemble(model, depth, WIDTH, features, 2)
    layers: list[nn.Module] = []
    for layer in range(depth):
        layers += [nn.Linear(WIDTH if layer else features, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 2))


def trained(
    model: str,
    depth: int,
    part: tuple[Tensor, Tensor],
    *,
    seed: int,
    rate: float = RATE,
) -> nn.Module:
    """A network trained on some rows."""
    x, y = part
    torch.manual_seed(seed)
    net = network(model, depth, x.shape[1])
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net


def accuracy(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Fraction of the rows that are classified rightly."""
    return (net(batch[0]).argmax(1) == batch[1]).float().mean()


def alignments(
    model: str, ends: tuple[nn.Module, nn.Module], inputs: Tensor
) -> Iterator[tuple[str, Transform | None]]:
    """Every way to bring the second network near the first."""
    a, b = (net.state_dict() for net in ends)
    yield "naive", None
    spec = infer_spec(ends[0], inputs[:8])
    yield "permutation", match_weights(spec, a, b).transform
    if model == "mlp":
        seen = match_activations(spec, *ends, [inputs])
        yield "activation permutation", seen.transform
        return
    spec = infer_spec(ends[0], inputs[:8], kinds="all")
    yield "all", match_weights(spec, a, b).transform
    seen = match_activations(spec, *ends, [inputs])
    yield "activation permutation", seen.transform.only(["trees"])
    yield "activation all", seen.transform


def run(data: Data, key: Key) -> Row:
    """Train a pair, align it in every way, measure."""
    name, model, depth, rate, pair = key
    begin = time.perf_counter()
    seeds = 2 * pair, 2 * pair + 1
    ends = tuple(
        trained(model, depth, data.train, seed=seed, rate=rate)
        for seed in seeds
    )
    a, b = (net.state_dict() for net in ends)
    barriers, curves = {}, {}
    for way, transform in alignments(model, ends, data.train[0][:BATCH]):
        moved = b if transform is None else transform.apply(b)
        curve = measure_barrier(
            ends[0],
            a,
            moved,
            [data.test],
            points=25,
            loss=lambda net, batch: {"accuracy": accuracy(net, batch)},
        )
        values = [100 * value for value in curve.values["accuracy"]]
        barriers[way] = 100 * curve.height("accuracy", "chord")
        curves[way] = [round(value, 3) for value in values]
    naive = curves["naive"]
    seconds = round(time.perf_counter() - begin, 1)
    return Row(
        name,
        model,
        depth,
        pair,
        (naive[0], naive[-1]),
        barriers,
        curves,
        seconds,
        rate,
    )


def read_rows(path: Path) -> list[Row]:
    """The rows that are there."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text())]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """All rows, one a line."""
    lines = [json.dumps(asdict(row)) for row in rows]
    atomic_write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "–"
    return f"{fmean(values):.2f} ± {stdev(values):.2f}"


def cell(values: Sequence[float], published: float | None) -> str:
    """Ours, and what was published in brackets."""
    ours = spread(values)
    return ours if published is None else f"{ours} ({published:g})"


def table(rows: Sequence[Row]) -> str:
    """Barriers by table, model and depth; the paper's numbers in brackets."""
    groups: dict[tuple[str, str, int, float], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key[:4], []).append(row)
    lines = [
        "| table | model | depth | step | pairs | accuracy % | naive | permutation | all | activations: order | all |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    order = sorted(
        groups,
        key=lambda g: (TABLES.index(g[0]), MODELS.index(g[1]), *g[2:]),
    )
    for group in order:
        own = groups[group]
        published = PUBLISHED_TABLES.get(group[:3], (None,) * 3)
        ends = [value for row in own for value in row.accuracy]
        cells = []
        for k, way in enumerate(WAYS):
            known = [r.barriers[way] for r in own if way in r.barriers]
            cells.append(cell(known, published[k] if k < 3 else None))
        name, model, depth, rate = group
        lines.append(
            f"| {name} | {model} | {depth} | {rate:g} | {len(own)} | {fmean(ends):.1f} | {' | '.join(cells)} |"
        )
    return "\n".join([*lines, "", *means(rows)])


def means(rows: Sequence[Row]) -> list[str]:
    """Means over the tables that were run, beside the paper's means over its tables."""
    lines = [
        "| model | depth | tables | naive | permutation | all |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for (model, depth), published in PUBLISHED_MEANS.items():
        own = [r for r in rows if r.key[1:4] == (model, depth, RATE)]
        tables = {row.data for row in own}
        cells = []
        for way, theirs in zip(WAYS[:3], published, strict=True):
            by_table = []
            for name in tables:
                found = [
                    row.barriers[way]
                    for row in own
                    if row.data == name and way in row.barriers
                ]
                by_table += [fmean(found)] if found else []
            cells.append(cell(by_table, theirs))
        if tables:
            lines.append(
                f"| {model} | {depth} | {len(tables)} | {' | '.join(cells)} |"
            )
    return lines


def picture(rows: Sequence[Row], path: Path) -> None:
    """Accuracy along the line between two ensembles, one panel a table and depth, as in the paper's figure."""
    from lightning_rebasin.plotting.style import (
        cycle,
        finish,
        new_figure,
        save,
    )

    own = [r for r in rows if r.model == "oblivious" and r.rate == RATE]
    names = [name for name in TABLES if any(r.data == name for r in own)]
    depths = sorted({row.depth for row in own})
    if not own:
        return
    figure = new_figure((3.2 * len(depths), 2.6 * len(names)))
    grid = figure.subplots(len(names), len(depths), squeeze=False)
    lams = np.linspace(0, 1, 25)
    for i, name in enumerate(names):
        for k, depth in enumerate(depths):
            axes = grid[i][k]
            here = [r for r in own if (r.data, r.depth) == (name, depth)]
            if not here:
                axes.set_axis_off()
                continue
            for way, colour in zip(WAYS[:3], cycle(3), strict=True):
                for row in here:
                    label = way if row is here[0] else None
                    axes.plot(
                        lams, row.curves[way], color=colour, lw=1, label=label
                    )
            axes.set_title(f"{name}, depth {depth}", fontsize=9, pad=18)
            axes.set_xlabel("λ")
            axes.set_ylabel("test accuracy %")
            finish(axes)
            axes.legend(
                frameon=False,
                fontsize=7,
                ncols=3,
                loc="lower left",
                bbox_to_anchor=(0, 1),
            )
    save(figure, path, "")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    option = parser.add_argument
    option("--data", nargs="+", choices=TABLES, default=TABLES[:2])
    option("--models", nargs="+", choices=MODELS, default=MODELS[:2])
    option("--depths", nargs="+", type=int, default=(1, 2, 3))
    option("--rate", type=float, default=RATE, help="step size of Adam")
    option("--pairs", type=int, default=3, help="pairs of seeds")
    option(
        "--minutes",
        type=float,
        default=float("inf"),
        help="begin no run after so many minutes",
    )
    option("--output", type=Path, default=RESULTS, help="where results go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write table and picture."""
    args = parsed(arguments)
    begin = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "rows.json"
    wanted = [
        (name, model, depth, args.rate, pair)
        for pair in range(args.pairs)
        for depth in args.depths
        for name in args.data
        for model in args.models
    ]
    data = {}
    for key in tqdm(wanted, unit="pair"):
        if time.monotonic() - begin > 60 * args.minutes:
            break
        # Read again: another study may have added rows meanwhile.
        if key in {row.key for row in read_rows(path)}:
            continue
        name = key[0]
        if name not in data:
            data[name] = load(name)
        row = run(data[name], key)
        write_rows(path, [*read_rows(path), row])
    rows = read_rows(path)
    atomic_write_text(args.output / "table.md", table(rows) + "\n")
    picture(rows, args.output / "barriers.png")
    print(table(rows))


if __name__ == "__main__":
    main()
