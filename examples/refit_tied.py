"""Refit of networks whose weights run several times: a GRU, a tied embedding and head, a block used three times.

Such a weight has no target of its own that one could solve for, so that a refit leaves it averaged and solves what is
around it.  Two short trainings of each network on the characters of Shakespeare, aligned in three ways:

    python examples/refit_tied.py            # three minutes of CPU
    python examples/refit_tied.py --networks gru

Writes a table (Markdown) and numbers (JSON) to examples/results/refit_tied; networks that are there already are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad
from tqdm import trange

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.shared import shared_path

from lightning_rebasin import (
    average,
    infer_spec,
    match_activations,
    match_weights,
    refit,
    repair,
)
from lightning_rebasin.files import atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results" / "refit_tied"
ALIGNMENTS = ("none", "weights", "correlation")
LENGTH, CHARACTERS = 48, 65


class Recurrent(nn.Module):
    """Embedding, GRU, head."""

    steps = 400

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 48)
        self.cell = nn.GRU(48, 96, batch_first=True)
        self.head = nn.Linear(96, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character everywhere."""
        hidden: Tensor = self.head(self.cell(self.embedding(x))[0])
        return hidden


def causal(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of width 5 over what came before, ``(batch, length, channels)``."""
    result: Tensor = convolution(pad(x.transpose(1, 2), (4, 0)))
    return result.transpose(1, 2)


class Tied(nn.Module):
    """The head is the embedding; between them two convolutions and a feed-forward block on a stream."""

    steps = 300

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 64)
        self.wide = nn.Conv1d(64, 128, 5)
        self.narrow = nn.Conv1d(128, 64, 5)
        self.norm = nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)
        self.bias = nn.Parameter(torch.zeros(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character everywhere."""
        stream = self.embedding(x)
        hidden = torch.relu(causal(self.wide, stream))
        stream = stream + causal(self.narrow, hidden)
        stream = stream + self.down(torch.relu(self.up(self.norm(stream))))
        return linear(stream, self.embedding.weight, self.bias)


class Thrice(nn.Module):
    """One block, used three times."""

    steps = 300

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 64)
        self.convolution = nn.Conv1d(64, 64, 5)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)
        self.head = nn.Linear(64, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character everywhere."""
        stream = self.embedding(x)
        for _ in range(3):
            stream = stream + torch.tanh(causal(self.convolution, stream))
            stream = stream + self.down(torch.relu(self.up(stream)))
        logits: Tensor = self.head(stream)
        return logits


NETWORKS: dict[str, Callable[[], Recurrent | Tied | Thrice]] = {
    "gru": Recurrent,
    "tied": Tied,
    "thrice": Thrice,
}


@dataclass(frozen=True)
class Row:
    """Losses in nats per character on text that nothing was fitted to."""

    network: str
    alignment: str
    ends: list[float]
    average: float
    repair: float
    refit: float


class Text:
    """Pieces of Shakespeare; the last tenth is kept for tests."""

    def __init__(self) -> None:
        (file,) = sorted(shared_path("data/shakespeare").glob("*.txt"))
        text = file.read_text(encoding="utf-8")
        numbers = {c: k for k, c in enumerate(sorted(set(text)))}
        self.ids = torch.tensor([numbers[c] for c in text])
        self.border = len(self.ids) * 9 // 10

    def batch(
        self, generator: torch.Generator, size: int, *, test: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Inputs, and the characters that follow."""
        low = self.border if test else 0
        high = len(self.ids) if test else self.border
        starts = torch.randint(
            low, high - LENGTH - 1, (size,), generator=generator
        )
        pieces = torch.stack([self.ids[k : k + LENGTH + 1] for k in starts])
        return pieces[:, :-1], pieces[:, 1:]


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def trained(name: str, text: Text, seed: int) -> nn.Module:
    """One short training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NETWORKS[name]()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, network.steps
    )
    generator = seeded(seed)
    for _ in trange(network.steps, desc=f"{name}, seed {seed}"):
        x, y = text.batch(generator, 32)
        loss = cross_entropy(network(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def aligned(
    alignment: str, ends: Sequence[nn.Module], batches: Sequence[Tensor]
) -> list[Mapping[str, Tensor]]:
    """The weights of both ends in the basis of the first."""
    a, b = (end.state_dict() for end in ends)
    if alignment == "none":
        return [a, b]
    spec = infer_spec(ends[0], batches[0][:2])
    if alignment == "weights":
        found = match_weights(spec, a, b)
    else:
        found = match_activations(
            spec, *ends, batches, statistic="correlation"
        )
    return [a, found.permutation.apply(b)]


def study(name: str, text: Text) -> list[Row]:
    """Train two networks, and merge them after every alignment."""
    inputs, labels = text.batch(seeded(99), 500, test=True)
    generator = seeded(7)
    batches = [text.batch(generator, 64)[0] for _ in range(8)]

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            logits = torch.cat([network(x) for x in inputs.split(100)])
        return float(cross_entropy(logits.flatten(0, 1), labels.flatten()))

    ends = [trained(name, text, seed) for seed in (1, 2)]
    rows = []
    for alignment in ALIGNMENTS:
        states = aligned(alignment, ends, batches)
        merged = copy.deepcopy(ends[0])
        merged.load_state_dict(average(states))
        rows.append(
            Row(
                name,
                alignment,
                [loss(end) for end in ends],
                loss(merged),
                loss(repair(merged, states, batches).module),
                loss(refit(merged, states, batches).module),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Merged networks with tied and recurrent weights",
        "",
        "Nats per character on 500 test pieces of 48; 512 training pieces without labels.  Made by",
        "`examples/refit_tied.py`.",
        "",
        "| network | aligned by | ends | average | REPAIR | refit |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in rows:
        ends = ", ".join(f"{end:.3f}" for end in row.ends)
        cells = [f"{x:.3f}" for x in (row.average, row.repair, row.refit)]
        lines.append(
            f"| {row.network} | {row.alignment} | {ends} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is not known yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS)
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "numbers.json"
    saved = json.loads(file.read_text()) if file.exists() else []
    rows = [Row(**row) for row in saved]
    text = Text()
    for name in args.networks:
        if any(row.network == name for row in rows):
            continue
        rows += study(name, text)
        numbers = [asdict(row) for row in rows]
        atomic_write_text(file, json.dumps(numbers, indent=1) + "\n")
    atomic_write_text(args.output / "table.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
