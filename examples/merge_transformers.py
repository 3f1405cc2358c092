"""Merge two character transformers that were trained apart: permutations do nothing for them, rotations do.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    python examples/merge_transformers.py            # the GPT pair
    python examples/merge_transformers.py --pair llama --untie

writes the barriers (JSON, CSV) and a picture (PNG) to examples/results/merge_transformers.  The loss between the two
networks is measured on the 512 windows of the files' own ``train.py`` at 11 values of λ:

- ``naive``: as they are;
- ``permutations``: after weight matching with permutations only;
- ``weights``: after matching with all kinds, without any data;
- ``activations``: the same from the activations of 256 sequences;
- ``learned``: the elements learned by a MergeModule, starting from the better of the two;
- ``refit``: the midpoint by least squares behind ``activations`` (one point).

``--redraw`` only draws the pictures again from the numbers that were kept.

600 steps take about two minutes on one core.  Expected output: examples/results/merge_transformers/gpt.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.shared import shared_path

from lightning_rebasin import (
    MergeModule,
    infer_spec,
    interpolate,
    match_activations,
    match_weights,
    refit,
    untie,
)
from lightning_rebasin.files import atomic_write_text

State = Mapping[str, Tensor]
Curves = dict[str, list[float]]
RESULTS = Path(__file__).resolve().parent / "results" / "merge_transformers"
LAMBDAS = [i / 10 for i in range(11)]
BATCH, CONTEXT_BATCH, SEED = 32, 64, 0


class Study:
    """Two networks of one architecture, and the windows on which they are measured.

    Args:
        pair: ``"gpt"`` or ``"llama"``.
        untie: Give the head of a tied network weights of its own.
    """

    def __init__(self, pair: str, *, untie: bool) -> None:
        folder = shared_path("data/checkpoints/char-transformer")
        sys.path.insert(0, str(folder))
        self.networks = _module(folder / "networks.py")
        self.train = _module(folder / "train.py")
        self.name = {"gpt": "GPT", "llama": "Llama"}[pair]
        self.untie = untie
        self.states = []
        for letter in "ab":
            file = folder / f"{pair}-{letter}.pt"
            network = self.network(torch.load(file, weights_only=True))
            self.states.append(_copied(network.state_dict()))
        generator = torch.Generator().manual_seed(99)
        self.held_out = [
            self.train.windows(self.train.VALIDATION, 64, generator)
            for _ in range(8)
        ]

    def network(self, state: State) -> nn.Module:
        """A network with some weights."""
        found: nn.Module = getattr(self.networks, self.name)()
        if self.untie:
            found = untie(found, ["head.weight"])
        found.load_state_dict(state)
        return found.eval()

    @torch.no_grad()
    def loss(self, state: State) -> float:
        """Mean loss on the 512 windows."""
        network = self.network(state)
        losses = [self.train.loss(network, *b).item() for b in self.held_out]
        return sum(losses) / len(losses)

    def curve(self, a: State, b: State) -> list[float]:
        """Losses on the segment."""
        return [self.loss(interpolate(a, b, lam)) for lam in LAMBDAS]

    def windows(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Sequences of the training text."""
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = self.train.windows(
            self.train.TRAIN, count, generator
        )
        return inputs, targets


def barrier(curve: list[float]) -> float:
    """Highest loss above the chord."""
    return max(
        value - (1 - lam) * curve[0] - lam * curve[-1]
        for lam, value in zip(LAMBDAS, curve, strict=True)
    )


def learned(
    study: Study, spec: Any, start: Any, steps: int
) -> tuple[State, State]:
    """Both ends after learning the elements of all groups."""
    loader = partial(DataLoader, batch_size=BATCH)
    held_out = study.windows(8 * BATCH, SEED + 2)
    module = MergeModule(
        study.network(study.states[0]),
        study.states[0],
        study.states[1],
        spec=spec,
        kinds="all",
        init=start,
        loss=lambda network, batch: study.train.loss(network, *batch),
        lam=(0.4, 0.6),
        seed=SEED,
    )
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module,
        loader(TensorDataset(*study.windows(steps * BATCH, SEED + 1))),
        loader(TensorDataset(*held_out)),
    )
    moved = module.transform.apply(study.states[1])
    return module.ends.reference, moved


def measure(study: Study, steps: int) -> tuple[Curves, dict[str, Any]]:
    """All curves, and seconds and other numbers of each way."""
    a, b = study.states
    example = study.windows(2, SEED)[0]
    curves: Curves = {"naive": study.curve(a, b)}
    facts: dict[str, Any] = {"seconds": {}, "steps": steps}
    plain = infer_spec(study.network(a), example)
    spec = infer_spec(study.network(a), example, kinds="all")
    canonical = spec.canonicalise(a)
    batches = [study.windows(64, SEED + 10 + i)[0] for i in range(4)]
    found = {
        "permutations": lambda: match_weights(plain, a, b, seed=SEED),
        "weights": lambda: match_weights(spec, a, b, seed=SEED),
        "activations": lambda: match_activations(
            spec, study.network(a), study.network(b), batches
        ),
    }
    transforms = {}
    for name, match in found.items():
        begin = time.perf_counter()
        transforms[name] = match().transform
        facts["seconds"][name] = time.perf_counter() - begin
        first = a if name == "permutations" else canonical
        curves[name] = study.curve(first, transforms[name].apply(b))
        print(name, round(barrier(curves[name]), 3), flush=True)
    aligned = transforms["activations"].apply(b)
    ends = [canonical, aligned]
    merged = refit(study.network(a), ends, batches).module
    middle = (curves["naive"][0] + curves["naive"][-1]) / 2
    facts["refit above the mean of the ends"] = (
        study.loss(merged.state_dict()) - middle
    )
    if steps:
        begin = time.perf_counter()
        ends = list(learned(study, spec, transforms["activations"], steps))
        facts["seconds"]["learned"] = time.perf_counter() - begin
        curves["learned"] = study.curve(ends[0], ends[1])
    facts["barriers"] = {
        name: barrier(curve) for name, curve in curves.items()
    }
    return curves, facts


def plot(curves: Curves, facts: dict[str, Any], path: Path) -> None:
    """The loss along the segment, one line for each way."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
    for name, curve in curves.items():
        height = facts["barriers"][name]
        axes.plot(LAMBDAS, curve, marker=".", label=f"{name} ({height:.2f})")
    ends = curves["naive"]
    above = facts["refit above the mean of the ends"]
    axes.plot(
        0.5,
        (ends[0] + ends[-1]) / 2 + above,
        "k*",
        label=f"refit of the midpoint\n({above:.2f} above the ends)",
    )
    axes.set(
        xlabel="λ",
        ylabel="validation loss (nats)",
        title=f"Two {facts['network']}s trained apart (barrier)",
    )
    axes.grid(alpha=0.3)
    # Beside the axes: the curves fill them from corner to corner.
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=150)


def redraw(folder: Path) -> None:
    """Draw the pictures again from the numbers that were kept."""
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        plot(facts["curves"], facts, path.with_suffix(".png"))


def _module(path: Path) -> ModuleType:
    """A Python file of the shared data."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _copied(state: State) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def main() -> None:
    """Measure one pair and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=("gpt", "llama"), default="gpt")
    parser.add_argument("--untie", action="store_true")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--redraw", action="store_true", help="only draw what was kept"
    )
    args = parser.parse_args()
    if args.redraw:
        redraw(args.output)
        return
    torch.manual_seed(SEED)
    study = Study(args.pair, untie=args.untie)
    curves, facts = measure(study, args.steps)
    suffix = "-untied" if args.untie else ""
    facts["network"] = study.name + suffix
    more = "" if args.steps == 600 else f"-{args.steps}"
    name = f"{args.pair}{suffix}{more}"
    args.output.mkdir(parents=True, exist_ok=True)
    content = {"seed": SEED, "lambdas": LAMBDAS, "curves": curves, **facts}
    atomic_write_text(
        args.output / f"{name}.json", json.dumps(content, indent=1) + "\n"
    )
    lines = ["lam," + ",".join(curves)]
    for row in zip(LAMBDAS, *curves.values(), strict=True):
        lines.append(",".join(f"{value:.6g}" for value in row))
    atomic_write_text(args.output / f"{name}.csv", "\n".join(lines) + "\n")
    plot(curves, facts, args.output / f"{name}.png")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
