"""What the default call of ``merge_checkpoints`` makes of pairs of real networks: a table with its rivals.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    python examples/merge_by_measurement.py                     # small networks, a few minutes
    python examples/merge_by_measurement.py --cases resnet20    # ten pairs and all five, 2.5 minutes of CPU each
    python examples/merge_by_measurement.py --cases split
    python examples/merge_by_measurement.py --cases vgg         # trains two networks first, a minute each

Every row is one merge of checkpoint files with unlabelled training data: the ends, their ensemble (mean of outputs),
the naive average, REPAIR behind the same alignment, and what the call returned, on test data that it never saw.
Tables (Markdown) and numbers (JSON) go to examples/results/merge_by_measurement; rows that are there already are kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.data import cifar10, mnist, normalise
from helpers.models import (
    LeNet,
    ModularAdditionMLP,
    ModularAdditionTransformer,
    ResNet20,
    mnist_mlp,
    modular_addition_pairs,
    modular_addition_tokens,
)
from helpers.shared import shared_path
from refit_resnet20 import Score
from small_vgg import prepared, trained, vgg11

from lightning_rebasin import merge_checkpoints
from lightning_rebasin.checkpoints import MergeReport
from lightning_rebasin.files import atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results" / "merge_by_measurement"


@dataclass(frozen=True, eq=False)
class Case:
    """Networks to merge, and data.

    Args:
        name: What the row is called.
        module: Makes the network.
        paths: The checkpoints.
        train: Batches without labels.
        test: Inputs and labels of each test batch.
    """

    name: str
    module: Callable[[], nn.Module]
    paths: Sequence[Path]
    train: Sequence[Tensor]
    test: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Row:
    """One merge, measured."""

    name: str
    ends: list[Score]
    ensemble: Score
    naive: Score
    repair: Score
    merged: Score
    alignment: str
    correction: str
    seconds: float


def merge(case: Case) -> Row:
    """Merge with the default call, and with REPAIR forced behind the alignment that it chose."""

    def evaluate(network: nn.Module) -> dict[str, float]:
        right, loss, count = 0.0, 0.0, 0
        with torch.no_grad():
            for x, y in case.test:
                logits = network(x)
                logits = logits[:, -1] if logits.ndim == 3 else logits
                right += float((logits.argmax(-1) == y).sum())
                loss += float(cross_entropy(logits, y, reduction="sum"))
                count += len(y)
        return {"accuracy": right / count, "loss": loss / count}

    def run(**options: Any) -> tuple[MergeReport, float]:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            report = merge_checkpoints(
                case.paths,
                Path(folder) / "merged.pt",
                module=case.module(),
                data=case.train,
                evaluate=evaluate,
                **options,
            )
            return report, time.process_time() - begin

    found, seconds = run()
    repaired, _ = run(method=found.method, statistics="repair")
    rows = {name: Score(**row) for name, row in found.evaluation.items()}
    return Row(
        case.name,
        [rows[name] for name in found.names],
        rows["ensemble"],
        rows["naive average"],
        Score(**repaired.evaluation["merged"]),
        rows["merged"],
        found.method,
        found.statistics,
        round(seconds, 1),
    )


def small() -> Iterator[Case]:
    """Networks that take seconds."""
    folder = shared_path("data/checkpoints")
    for name, make, flat in (
        ("mnist-lenet", LeNet, False),
        ("mnist-mlp", mnist_mlp, True),
    ):
        parts = []
        for split, count in (("train", 2000), ("test", 2000)):
            images, labels = mnist(split)
            images = normalise(images[:count], name)
            x = images.flatten(1) if flat else images
            parts.append((x, labels[:count]))
        (train, _), (test, labels) = parts
        paths = [folder / name / f"{end}.pt" for end in "ab"]
        batches = train.split(250)
        yield Case(name, make, paths, batches, [(test, labels)])
    for name, make, data in (
        ("mlp", ModularAdditionMLP, modular_addition_pairs()),
        (
            "transformer",
            ModularAdditionTransformer,
            modular_addition_tokens(),
        ),
    ):
        order = torch.randperm(
            len(data[0]), generator=torch.Generator().manual_seed(0)
        )
        x, y = data[0][order], data[1][order]
        paths = [
            folder / "modular-addition" / f"{name}-{k}.pt" for k in (1, 2)
        ]
        batches, rest = x[:2000].split(250), (x[2000:6000], y[2000:6000])
        yield Case(f"modular addition, {name}", make, paths, batches, [rest])


def characters() -> Iterator[Case]:
    """Character transformers; the last character of each text is what is asked for."""
    folder = shared_path("data/checkpoints/char-transformer")
    networks = _load(folder / "networks.py")
    train, test, labels = _texts()
    for name, make in (("gpt", networks.GPT), ("llama", networks.Llama)):
        paths = [folder / f"{name}-{end}.pt" for end in "ab"]
        yield Case(f"char {name}", make, paths, train, [(test, labels)])


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _texts() -> tuple[list[Tensor], Tensor, Tensor]:
    """Texts of 64 characters from the first nine tenths, and from the rest with the character that follows."""
    (file,) = sorted(shared_path("data/shakespeare").glob("*.txt"))
    text = file.read_text(encoding="utf-8")
    alphabet = {c: k for k, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([alphabet[c] for c in text])
    border = len(ids) * 9 // 10
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(border - 65, (256,), generator=generator)
    train = torch.stack([ids[s : s + 64] for s in starts])
    starts = torch.randint(border, len(ids) - 65, (2000,), generator=generator)
    test = torch.stack([ids[s : s + 64] for s in starts])
    return list(train.split(32)), test, ids[starts + 64]


def resnet20(groups: Sequence[str], folder: str, test: int) -> Iterator[Case]:
    """CIFAR-10 ResNet-20s."""
    images, labels = cifar10("test", test)
    prepared = []
    for x in (cifar10("train", 2000)[0], images):
        # this memory format is faster on a CPU
        prepared.append(
            normalise(x, "cifar10-resnet20").contiguous(
                memory_format=torch.channels_last
            )
        )
    train, x = prepared
    batches = list(zip(x.split(250), labels.split(250), strict=True))
    extension = "th" if folder == "cifar10-resnet20" else "pt"
    for names in groups:
        ends = names.split()
        paths = [
            shared_path(f"data/checkpoints/{folder}/{end}.{extension}")
            for end in ends
        ]
        yield Case(
            f"ResNet-20 {'+'.join(ends)}",
            ResNet20,
            paths,
            train.split(250),
            batches,
        )


def vgg(folder: Path) -> Iterator[Case]:
    """Two short trainings of our own, made on the first call."""
    train, _ = prepared("train", 2000)
    test, labels = prepared("test", 2000)
    batches = list(zip(test.split(250), labels.split(250), strict=True))
    paths = [trained(folder / "runs", seed) for seed in (0, 1)]
    yield Case(
        "VGG11, an eighth wide", vgg11, paths, train.split(250), batches
    )


def cases(name: str, folder: Path) -> Iterator[Case]:
    """The networks of one choice of ``--cases``; what is trained for them goes to the folder."""
    if name == "small":
        yield from small()
    elif name == "vgg":
        yield from vgg(folder)
    elif name == "characters":
        yield from characters()
    elif name == "split":
        yield from resnet20(["d1 d2", "s1 s2"], "cifar10-split", 5000)
    else:
        groups = [" ".join(pair) for pair in combinations("abcde", 2)]
        yield from resnet20([*groups, "a b c d e"], "cifar10-resnet20", 2000)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Merged by the default call",
        "",
        "Accuracy in % (loss in nats) on test data; 2000 training inputs (256 texts) without labels.  Made by",
        "`examples/merge_by_measurement.py`; `seconds` are CPU seconds of the whole call.",
        "",
        "| networks | ends | ensemble | average | REPAIR | merged | by | seconds |",
        "|---|---|--:|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        ends = ", ".join(f"{100 * end.accuracy:.1f}" for end in row.ends)
        scores = (row.ensemble, row.naive, row.repair, row.merged)
        cells = [f"{100 * s.accuracy:.1f} ({s.loss:.2f})" for s in scores]
        how = f"{row.alignment}, {row.correction}"
        lines.append(
            f"| {row.name} | {ends} | {' | '.join(cells)} | {how} | {row.seconds} |"
        )
    pairs = [row.merged.accuracy for row in rows if len(row.ends) == 2]
    if len(pairs) > 2 and all("ResNet" in row.name for row in rows):
        lines += [
            "",
            f"Pairs: mean {100 * sum(pairs) / len(pairs):.1f}, lowest {100 * min(pairs):.1f}.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Merge what is not known yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--cases",
        choices=("small", "vgg", "characters", "split", "resnet20"),
        default="small",
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / f"{args.cases}.json"
    saved = json.loads(file.read_text()) if file.exists() else []
    known = {row["name"] for row in saved}
    for case in tqdm(list(cases(args.cases, args.output)), desc="merges"):
        if case.name not in known:
            saved.append(asdict(merge(case)))
            atomic_write_text(file, json.dumps(saved, indent=1) + "\n")
    text = table([_row(row) for row in saved])
    atomic_write_text(args.output / f"{args.cases}.md", text)
    print(text)


def _row(saved: Mapping[str, Any]) -> Row:
    """A row as it was saved."""
    made = dict(saved)
    made["ends"] = [Score(**end) for end in saved["ends"]]
    for name in ("ensemble", "naive", "repair", "merged"):
        made[name] = Score(**saved[name])
    return Row(**made)


if __name__ == "__main__":
    main()
