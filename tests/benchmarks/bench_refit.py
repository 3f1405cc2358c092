"""Time and memory of ``refit`` against the number of images: ``python tests/benchmarks/bench_refit.py``.

Two ResNet-20s of other people, aligned by the correlation of their activations; each size runs in a process of its own,
so that the peak of its memory is its own.  Needs the shared data.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = (500, 1000, 2000)


def measure(images: int) -> None:
    """Print CPU seconds and mebibytes above the start of one refit."""
    from helpers.data import cifar10, normalise
    from helpers.models import ResNet20, load_weights
    from helpers.shared import shared_path

    from lightning_rebasin import infer_spec, match_activations, refit

    ends = []
    for name in "ab":
        end = ResNet20().eval()
        path = shared_path(f"data/checkpoints/cifar10-resnet20/{name}.th")
        end.load_state_dict(load_weights(path), strict=False)
        ends.append(end)
    x = normalise(cifar10("train", images)[0], "cifar10-resnet20")
    batches = x.contiguous(memory_format=torch.channels_last).split(250)
    spec = infer_spec(ends[0], x[:2])
    found = match_activations(
        spec, *ends, batches[:2], statistic="correlation"
    )
    a, b = (end.state_dict() for end in ends)
    states = [a, found.permutation.apply(b)]
    before = _resident()
    seen = [before]
    done = threading.Event()

    def watch() -> None:
        # The system's own peak would be that of the matching before.
        while not done.wait(0.02):
            seen.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.process_time()
    refit(ResNet20(), states, batches)
    seconds = time.process_time() - begin
    done.set()
    watcher.join()
    print(f"| {images} | {seconds:.1f} | {max(seen) - before:.0f} |")


def _resident() -> float:
    """Resident memory in mebibytes."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """One process per size."""
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        measure(int(sys.argv[1]))
        return
    print("| images | CPU seconds | MiB above the start |")
    print("|--:|--:|--:|")
    for size in SIZES:
        command = [sys.executable, __file__, str(size)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
