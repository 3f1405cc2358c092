"""Matching a small network while other processes compute: two threads must not wait for each other.

pytest -m benchmark tests/benchmarks/bench_busy_machine.py -s
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from lightning_rebasin import infer_spec, match_weights

LOAD = "import torch\ntorch.set_num_threads(1)\na = torch.randn(800, 800)\nwhile True:\n    a @ a\n"
ROUNDS = 3


class Layer(nn.Module):
    """Post-norm attention and feed-forward of width 32."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (
            nn.Linear(width, width) for _ in "qkvo"
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x):
        batch, length, _ = x.shape
        shape = (batch, length, self.heads, -1)
        parts = [
            f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        x = self.norm1(x + self.o(mixed.transpose(1, 2).reshape(x.shape)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Bert(nn.Module):
    """Two layers of 32, about 21 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(100, 32), nn.Embedding(16, 32)
        self.layers = nn.Sequential(Layer(), Layer())
        self.head = nn.Linear(32, 2)

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.layers(x).mean(1))


def seconds(spec, a, b, threads: int) -> float:
    """Wall-clock time of the default call: waiting is what is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        begin = time.perf_counter()
        match_weights(spec, a, b)
        return time.perf_counter() - begin
    finally:
        torch.set_num_threads(before)


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_two_threads_on_a_busy_machine():
    torch.manual_seed(0)
    first, second = Bert(), Bert()
    spec = infer_spec(first, torch.zeros(1, 8, dtype=torch.long))
    a, b = first.state_dict(), second.state_dict()
    idle = {
        n: statistics.median(seconds(spec, a, b, n) for _ in range(ROUNDS))
        for n in (1, 2)
    }
    others = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(2)]
    try:
        time.sleep(3.0)
        pairs = [
            (seconds(spec, a, b, 1), seconds(spec, a, b, 2))
            for _ in range(ROUNDS)
        ]
    finally:
        for process in others:
            process.kill()
            process.wait()
    one, two = (
        statistics.median(column) for column in zip(*pairs, strict=True)
    )
    print(
        f"\nidle: {idle[1]:.3f} s on one thread, {idle[2]:.3f} on two; busy: {one:.3f} and {two:.3f}"
    )
    assert two <= 2.0 * one, (
        "a ratio within one process, not a wall-clock time"
    )
