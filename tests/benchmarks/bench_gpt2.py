"""Time and memory of the default matching of two GPT-2 (124 million): ``python tests/benchmarks/bench_gpt2.py``.

Random weights; ``planted``: the second network is the first in another order of its stream, heads and hidden units, and
must be found exactly; ``unrelated``: two networks that were drawn apart, where no start can end early.  Each runs in a
process of its own, so that the peak of its memory is its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

CASES = ("planted", "unrelated")


def measure(case: str) -> None:
    """Print CPU and wall seconds of the trace and of the matching."""
    import transformers

    from lightning_rebasin import infer_spec, match_weights
    from lightning_rebasin.symmetry import Permutation

    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        # Fresh biases and gains are all alike, and could not tell the units apart.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0, 0.2)
        networks.append(model.eval())
        if case == "planted":
            break
    began = time.process_time()
    spec = infer_spec(networks[0], torch.arange(8)[None])
    traced = time.process_time() - began
    a = networks[0].state_dict()
    planted = Permutation.random(spec, torch.Generator().manual_seed(2))
    b = planted.apply(a) if case == "planted" else networks[1].state_dict()
    wall, cpu = time.perf_counter(), time.process_time()
    found = match_weights(spec, a, b)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    exact = found.permutation == planted.inverse()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{case}: {torch.get_num_threads()} threads, trace {traced:.1f} CPU s, matching {cpu:.1f} CPU s, {wall:.1f} s, "
        f"{len(found.descents)} descents, exact {exact}, peak {peak:.0f} MiB with both networks"
    )


def main() -> None:
    """Each case in a process of its own."""
    for case in sys.argv[1:] or CASES:
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__, f"--{case}"], check=True
        )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("--"):
        measure(sys.argv[1].removeprefix("--"))
    else:
        main()
