"""Times this version against another copy of the package, turn by turn: is a change of the inside slower?

    python tests/benchmarks/compare_versions.py --other FOLDER [--runs 5] [--rows infer,match,...] [--threads 1]

``FOLDER`` holds the other version's ``lightning_rebasin`` (a checkout, or a folder that ``pip install --target`` made).
Both run in processes of their own that stay alive, and take turns row by row, so that whatever else the machine does
hits both alike.  Printed are the medians of the CPU seconds and of the ratios; a ratio above 1 means slower than the
other version.  Only public names are used, so that any two versions can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
#: Rows by name; a row is made once per process and then called once per run.
ROWS: dict[str, Callable[[], Callable[[int], object]]] = {}


def row(
    name: str,
) -> Callable[
    [Callable[[], Callable[[int], object]]],
    Callable[[], Callable[[int], object]],
]:
    """Register what makes a row."""

    def register(
        make: Callable[[], Callable[[int], object]],
    ) -> Callable[[], Callable[[int], object]]:
        ROWS[name] = make
        return make

    return register


def descent(table, shapes):
    """One descent from the identity with the visiting order of a seed."""
    from helpers.architectures import random_states

    from lightning_rebasin import PermutationSpec, match_weights

    a, b = random_states(shapes)
    spec = PermutationSpec.from_table(table, a)
    return lambda seed: match_weights(spec, a, b, init="identity", seed=seed)


@row("match ResNet20 x1, descent")
def match_narrow():
    """Many small products."""
    from helpers.architectures import resnet20

    return descent(*resnet20(1))


@row("match ResNet20 x16, descent")
def match_wide():
    """Large convolutions."""
    from helpers.architectures import resnet20

    return descent(*resnet20(16))


@row("match VGG16, descent")
def match_vgg():
    """Large assignments."""
    from helpers.architectures import vgg16

    return descent(*vgg16())


@row("match ResNet50, descent")
def match_resnet50():
    """Many large assignments."""
    from helpers.architectures import resnet50

    return descent(*resnet50())


@row("match 12 transformer MLPs, descent")
def match_transformer():
    """One assignment of 3072 per layer."""
    from helpers.architectures import transformer_mlps

    return descent(*transformer_mlps())


@row("match LeNet, default call")
def match_lenet():
    """Real networks, the identity and two annealed starts."""
    import torch
    from helpers.models import LeNet, load_weights
    from helpers.shared import shared_path

    from lightning_rebasin import infer_spec, match_weights

    a, b = (
        load_weights(shared_path(f"data/checkpoints/mnist-lenet/{name}.pt"))
        for name in "ab"
    )
    spec = infer_spec(LeNet(), torch.zeros(1, 1, 28, 28))
    return lambda seed: match_weights(spec, a, b, seed=seed)


def real_resnet20():
    """A module, its spec and two trained networks."""
    import torch
    from helpers.models import ResNet20, load_weights
    from helpers.shared import shared_path

    from lightning_rebasin import infer_spec

    model = ResNet20().eval()
    folder = shared_path("data/checkpoints/cifar10-resnet20")
    a, b = (
        {**model.state_dict(), **load_weights(folder / f"{name}.th")}
        for name in "ab"
    )
    return model, infer_spec(model, torch.zeros(1, 3, 32, 32)), a, b


@row("match ResNet20 pair, default call")
def match_real_resnet20():
    """Real networks with batch norms and shortcuts."""
    from lightning_rebasin import match_weights

    _, spec, a, b = real_resnet20()
    return lambda seed: match_weights(spec, a, b, seed=seed)


@row("apply, inverse, compose on ResNet20")
def algebra():
    """The values of the actions room, a hundred times."""
    import torch

    from lightning_rebasin import Permutation

    _, spec, a, _ = real_resnet20()

    def work(seed):
        p = Permutation.random(spec, torch.Generator().manual_seed(seed))
        for _ in range(100):
            p.compose(p.inverse()).apply(a)

    return work


@row("gate of ResNet20")
def gate():
    """One proof in float64."""
    import torch

    from lightning_rebasin import Permutation, check_equivalence

    model, spec, _, _ = real_resnet20()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return lambda seed: check_equivalence(
        model, Permutation.random(spec, torch.Generator().manual_seed(seed)), x
    )


@row("activation matching of LeNet")
def activations():
    """Streaming statistics, one assignment per group."""
    import torch
    from helpers.models import LeNet

    from lightning_rebasin import infer_spec, match_activations

    torch.manual_seed(0)
    nets = [LeNet().eval(), LeNet().eval()]
    spec = infer_spec(nets[0], torch.zeros(1, 1, 28, 28))
    batches = list(
        torch.rand(
            1000, 1, 28, 28, generator=torch.Generator().manual_seed(0)
        ).split(250)
    )
    return lambda _: match_activations(spec, *nets, batches)


@row("barrier of an MLP, 25 points")
def barrier():
    """The evaluation engine."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_rebasin import measure_barrier
    from lightning_rebasin.demo.model import Classifier

    torch.manual_seed(0)
    module = Classifier(features=784, width=256)
    other = {
        name: tensor + 0.01 for name, tensor in module.state_dict().items()
    }
    data = TensorDataset(torch.rand(2000, 784), torch.randint(10, (2000,)))
    loader = DataLoader(data, batch_size=500)
    return lambda _: measure_barrier(
        module, module.state_dict(), other, loader, points=25
    )


@row("assignment 1024, cold")
def cold():
    """One dense problem."""
    import torch

    from lightning_rebasin import solve_assignment

    cost = torch.randn(
        1024, 1024, generator=torch.Generator().manual_seed(0)
    ).numpy()
    return lambda _: solve_assignment(cost)


@row("infer ResNet50-sized network")
def infer_resnet():
    """Bottlenecks of the sizes of ResNet-50."""
    import torch
    from helpers.versions import bottleneck_network

    from lightning_rebasin import infer_spec

    model = bottleneck_network()
    return lambda _: infer_spec(model, torch.zeros(1, 3, 64, 64))


@row("infer GPT-2-sized network")
def infer_gpt():
    """Twelve blocks of 768, twelve heads."""
    import torch
    from helpers.versions import gpt2_sized

    from lightning_rebasin import infer_spec

    model = gpt2_sized()
    return lambda _: infer_spec(model, torch.zeros(1, 8, dtype=torch.long))


def serve() -> None:
    """A worker: reads ``{"row", "seed"}`` from standard input, answers with CPU and wall seconds."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    made: dict[str, Callable[[int], object]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        name = order["row"]
        if name not in made:
            made.clear()  # one row's networks in memory at a time
            made[name] = ROWS[name]()
            made[name](0)  # compiles what must be compiled
        cpu, wall = time.process_time(), time.perf_counter()
        made[name](order["seed"])
        print(
            json.dumps(
                [time.process_time() - cpu, time.perf_counter() - wall]
            ),
            flush=True,
        )


def worker(folder: Path, threads: int) -> subprocess.Popen[str]:
    """A process that runs the package in ``folder``."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{TESTS}",
        "OMP_NUM_THREADS": str(threads),
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).resolve()),
        "--serve",
    ]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process: subprocess.Popen[str], name: str, seed: int) -> float:
    """CPU seconds of one run."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"row": name, "seed": seed}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"the process of row {name!r} ended")
    return float(json.loads(answer)[0])


def main() -> None:
    """Compare row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--other",
        type=Path,
        help="folder that holds the other version's package",
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=5,
        help="runs per row and version (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        default="",
        help="only rows whose name holds one of these words, comma-separated",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of each process (default: %(default)s)",
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    if args.other is None or not (args.other / "lightning_rebasin").is_dir():
        parser.error(
            "--other must name a folder that holds a 'lightning_rebasin' package"
        )
    words = [word for word in args.rows.split(",") if word]
    print(
        "| row | other (s) | this (s) | this / other | runs |\n|---|--:|--:|--:|--:|",
        flush=True,
    )
    processes = [
        worker(args.other.resolve(), args.threads),
        worker(TESTS.parent, args.threads),
    ]
    for name in [
        n for n in ROWS if not words or any(word in n for word in words)
    ]:
        times: list[tuple[float, float]] = []
        for seed in range(args.runs):
            # Who goes first alternates, so that neither always finds the caches warm.
            turn = processes if seed % 2 == 0 else processes[::-1]
            found = {process.pid: ask(process, name, seed) for process in turn}
            times.append((found[processes[0].pid], found[processes[1].pid]))
        other, this = (
            statistics.median(column) for column in zip(*times, strict=True)
        )
        ratio = statistics.median(mine / theirs for theirs, mine in times)
        print(
            f"| {name} | {other:.4g} | {this:.4g} | {ratio:.2f} | {args.runs} |",
            flush=True,
        )
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
