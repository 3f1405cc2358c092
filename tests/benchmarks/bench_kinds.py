"""What all kinds of symmetry cost: a learned step against a training step, and matching without data.

    pytest -m benchmark tests/benchmarks/bench_kinds.py -s

Both are measured in CPU seconds, so a busy machine does little harm.  ``REBASIN_GPT_LAYERS`` (12) and
``REBASIN_GPT_WIDTH`` (768) make the pair of the second benchmark smaller than GPT-2 small.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import statistics
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.shared import shared_path
from helpers.timing import cpu_seconds
from torch import nn

from lightning_rebasin import infer_spec, match_activations, match_weights
from lightning_rebasin.modules.elements import LearnedElements
from lightning_rebasin.modules.endpoints import Endpoints

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
STEPS, WARM_UP, SEQUENCES = 20, 3, 32
#: Most CPU time of a learned step, in training steps.
LEARNED_STEP = 1.6
#: Three minutes on two cores, and bytes above the two states.
MATCHING_SECONDS, MATCHING_BYTES = 360, 2 * 2**30


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shared_module(folder: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_learned_step_of_a_character_gpt():
    """Forward, backward and the optimizer's step, of all elements and permutations against all weights."""
    folder = shared_path("data/checkpoints/char-transformer")
    networks, train = (shared_module(folder, n) for n in ("networks", "train"))
    a, b = (
        torch.load(folder / f"gpt-{letter}.pt", weights_only=True)
        for letter in "ab"
    )
    net, plain, other = networks.GPT(), networks.GPT(), networks.GPT()
    for network, state in ((net, a), (plain, a), (other, b)):
        network.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    example = train.windows(train.TRAIN, 2, generator)[0]
    spec = infer_spec(net, example, kinds="all")
    batches = [train.windows(train.TRAIN, 64, generator)[0] for _ in range(2)]
    ends = Endpoints(net, a, b)
    ends.use_gauge(spec)
    start = match_activations(spec, net, other, batches).transform
    started = ends.align(start)
    elements = LearnedElements(
        spec, start, ends.reference, started, ends.parameters
    )
    learning = torch.optim.Adam(elements.parameters(), lr=0.01)
    training = torch.optim.AdamW(plain.parameters(), lr=1e-3)

    def at(weights):
        return lambda x: torch.func.functional_call(net, weights, (x,))

    def learned_step(batch, step):
        moved = elements.moved(started)
        fixed = {name: tensor.detach() for name, tensor in moved.items()}
        with torch.no_grad():
            found = elements.orders.project(ends.reference, fixed, step)
        elements.orders.put(found[0])
        point = ends.between(elements.orders.permuted(moved), 0.5)
        loss = train.loss(at(point), *batch)
        learning.zero_grad()
        loss.backward()
        learning.step()

    def training_step(batch, step):
        loss = train.loss(plain, *batch)
        training.zero_grad()
        loss.backward()
        training.step()

    seconds = {learned_step: [], training_step: []}
    for number in range(WARM_UP + STEPS):
        batch = train.windows(train.TRAIN, SEQUENCES, generator)
        for step, found in seconds.items():
            found.append(cpu_seconds(partial(step, batch, number))[0])
    learned, trained = (
        statistics.median(found[WARM_UP:]) for found in seconds.values()
    )
    print(
        f"learned step {learned:.3f} s, training step {trained:.3f} s, ratio {learned / trained:.2f}"
    )
    assert learned <= LEARNED_STEP * trained


class Block(nn.Module):
    """Attention and an MLP behind LayerNorms, as in GPT-2, every projection a layer of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(width, width))
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        mixed = scores.softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Language(nn.Module):
    """GPT-2 with a head of its own."""

    def __init__(self, layers: int, width: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(64, width)
        heads = max(width // 64, 1)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def resident() -> int:
    """Memory of this process now, in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@contextmanager
def highest_memory():
    """A list whose last entry is the most memory of this process inside the block, in bytes."""
    found, done = [resident()], threading.Event()

    def watch():
        while not done.wait(0.02):
            found.append(max(found[-1], resident()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def test_matching_without_data_at_the_size_of_gpt2_small():
    layers = int(os.environ.get("REBASIN_GPT_LAYERS", "12"))
    width = int(os.environ.get("REBASIN_GPT_WIDTH", "768"))
    vocabulary = 50257 * width // 768
    tokens = torch.arange(8).reshape(1, 8)
    torch.manual_seed(0)
    a = Language(layers, width, vocabulary)
    inference, spec = cpu_seconds(lambda: infer_spec(a, tokens, kinds="all"))
    first = a.state_dict()
    second = Language(layers, width, vocabulary).state_dict()
    size = sum(t.numel() * t.element_size() for t in first.values())
    # The inference has given back what it used.
    gc.collect()
    with highest_memory() as memory:
        used, match = cpu_seconds(
            lambda: match_weights(spec, first, second, seed=0)
        )
    above = memory[-1] - memory[0]
    kinds = sorted({group.kind for group in spec.groups.values()})
    print(
        f"{layers} layers of {width}, {size / 2**20:.0f} MiB a state, kinds {kinds}: inference {inference:.1f} s, "
        f"matching {used:.1f} CPU s, peak {above / 2**20:.0f} MiB above what was there before, "
        f"objective {match.identity_objective:.1f} -> {match.objective:.1f}"
    )
    assert used <= MATCHING_SECONDS
    assert above <= MATCHING_BYTES
