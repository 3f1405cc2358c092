"""Match and merge two networks of 1.1 billion numbers on one small machine, and kill the process on the way.

    python examples/scale_1b.py --folder /tmp/scale            # 7 GB of disk while it runs

makes two Hugging Face folders in the shape of TinyLlama (22 layers of width 2048, bfloat16, five shards): random
weights, and the same network in another order of its units, heads and stream.  Then

    lightning-rebasin merge A B -o OUT

runs in a process of its own.  It is killed with signal 9 in the middle of the matching, after the matching, and when
two shards are written, and started again each time.  In the end every bit of OUT must be that of A: the matching must
have found the planted order, and a network averaged with itself is itself.  Writes what was measured to
examples/results/scale_1b.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_rebasin import PermutationSpec, infer_spec
from lightning_rebasin.checkpoints.architecture import network_of_folder
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.symmetry import Permutation

RESULTS = Path(__file__).resolve().parent / "results" / "scale_1b"
#: Width, hidden units, heads, heads of keys and values, words.
TINY_LLAMA = (2048, 5632, 32, 4, 32000)
SHARDS = 5
MEBIBYTE = 2**20


def make_pair(
    folder: Path, layers: int, sizes: tuple[int, ...] = TINY_LLAMA
) -> Permutation:
    """Two model folders ``a`` and ``b``, tensor by tensor, and the order of units that makes ``b`` out of ``a``."""
    width, hidden, heads, keys, words = sizes
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=words,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    for name in "ab":
        config.save_pretrained(folder / name)
        # An index with nothing in it yet: the network is asked for its tensors before there are any.
        (folder / name / "model.safetensors").touch()
    spec = spec_of(folder / "a")
    planted = Permutation.random(spec, torch.Generator().manual_seed(1))
    names = list(spec.tensors)
    for name in "ab":
        (folder / name / "model.safetensors").unlink()
    place = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        first, last = (len(names) * (number + i) // SHARDS for i in (0, 1))
        own = {n: _random(n, spec) for n in names[first:last]}
        place.update(dict.fromkeys(own, file))
        save_file(own, folder / "a" / file, {"format": "pt"})
        moved = {n: planted.apply_to(n, t) for n, t in own.items()}
        save_file(moved, folder / "b" / file, {"format": "pt"})
    index = json.dumps({"metadata": {}, "weight_map": place})
    for name in "ab":
        (folder / name / "model.safetensors.index.json").write_text(index)
    return planted


def spec_of(folder: Path) -> PermutationSpec:
    """What may be permuted, traced without any weights."""
    return infer_spec(network_of_folder(folder, hollow=True))


def _random(name: str, spec: PermutationSpec) -> Tensor:
    """A tensor whose numbers depend on its name only; gains are around 1."""
    seed = sum(name.encode()) * 1000 + len(name)
    generator = torch.Generator().manual_seed(seed)
    shape = spec.tensors[name].shape
    if len(shape) == 1:
        return (0.5 + torch.rand(shape, generator=generator)).bfloat16()
    return (0.02 * torch.randn(shape, generator=generator)).bfloat16()


def merge(folder: Path, before: str = "") -> list[str]:
    """The command, word by word; ``before`` is Python that runs first."""
    program = f"{before}\nimport sys; from lightning_rebasin.cli.main import main; sys.exit(main(sys.argv[1:]))"
    paths = [str(folder / name) for name in ("a", "b", "out")]
    return [sys.executable, "-c", program, "merge", *paths[:2], "-o", paths[2]]


@dataclass
class Run:
    """What one process took."""

    ended: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    #: Largest memory of its own, in MiB; mapped files, which the system may drop, come on top.
    anonymous: float = 0.0
    with_files: float = 0.0
    left: list[str] = field(default_factory=list)


def watch(folder: Path, moment: Callable[[], bool] | None, what: str) -> Run:
    """Run the merge; kill it as soon as ``moment`` is there."""
    run, begin = Run(what), time.monotonic()
    with (folder / "log.txt").open("ab") as log:
        log.write(f"\n--- {what}\n".encode())
        log.flush()
        process = subprocess.Popen(merge(folder), stdout=log, stderr=log)
        while process.poll() is None:
            _look(process.pid, run)
            if moment is not None and moment():
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.2)
    run.seconds = time.monotonic() - begin
    if moment is None:
        assert process.returncode == 0, (folder / "log.txt").read_text()
    else:
        assert process.returncode == -signal.SIGKILL, "it was over before"
        assert not (folder / "out").exists()
    work = folder / ".out.unfinished"
    run.left = sorted(str(p.relative_to(work)) for p in work.rglob("*.*"))
    return run


def _look(pid: int, run: Run) -> None:
    """Keep the largest memory and the processor time of a process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return
    found = dict(re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", status))
    own, files = (int(found.get(k, 0)) / 1024 for k in ("RssAnon", "RssFile"))
    run.anonymous = max(run.anonymous, own)
    run.with_files = max(run.with_files, own + files)
    words = times.split()
    if len(words) > 12:
        ticks = int(words[11]) + int(words[12])
        run.cpu_seconds = ticks / os.sysconf("SC_CLK_TCK")


def moments(
    folder: Path, layers: int
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """When to kill: the names of the moments, and what tells that they have come."""
    work = folder / ".out.unfinished"

    def standing() -> Mapping[str, Any]:
        try:
            with (work / "match-1.pt").open("rb") as file:
                found: Mapping[str, Any] = torch.load(file, weights_only=True)
        except OSError:
            return {"ended": [], "visited": 0}
        return found

    yield (
        "killed in the middle of a sweep",
        lambda: standing()["visited"] >= layers,
    )
    yield "killed after the matching", lambda: bool(standing()["ended"])
    yield (
        "killed with two shards written",
        lambda: len(list((work / "output").glob("*.safetensors"))) == 2,
    )


def check(folder: Path, planted: Permutation) -> None:
    """Every bit of the output is that of A, and the order found is the planted one backwards."""
    for file in sorted((folder / "a").glob("*.safetensors")):
        expected = load_file(file)
        found = load_file(folder / "out" / file.name)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    history = json.loads((folder / "out/lightning_rebasin.json").read_text())
    inverse = planted.inverse().elements
    for group, element in history["permutations"][1].items():
        assert inverse[group].tolist() == element, group
    assert not (folder / ".out.unfinished").exists()


def main() -> None:
    """Make the pair, kill and go on, check, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("scale"))
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    planted = make_pair(args.folder, args.layers)
    numbers = sum(
        torch.Size(info.shape).numel()
        for info in planted.spec.tensors.values()
    )
    print(f"{numbers:,} numbers, made in {time.monotonic() - begin:.0f} s")
    runs = []
    for what, moment in moments(args.folder, args.layers):
        runs.append(watch(args.folder, moment, what))
        print(runs[-1], flush=True)
    runs.append(watch(args.folder, None, "ran to its end"))
    print(runs[-1], flush=True)
    check(args.folder, planted)
    print("every bit of the output is that of A")
    args.output.mkdir(parents=True, exist_ok=True)
    found = {
        "numbers": numbers,
        "layers": args.layers,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "torch": torch.__version__,
        "model_mebibytes": 2 * numbers / MEBIBYTE,
        "exact": True,
        "runs": [vars(run) for run in runs],
    }
    atomic_write_text(
        args.output / "scale_1b.json", json.dumps(found, indent=1) + "\n"
    )
    log = (args.folder / "log.txt").read_text()
    # Progress bars are written over themselves, and move the cursor up.
    lines = re.split(r"[\r\n]+", log.replace("\x1b[A", ""))
    kept = [line.rstrip() for line in lines if line.strip()]
    atomic_write_text(args.output / "progress.txt", "\n".join(kept) + "\n")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
