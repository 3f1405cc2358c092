"""One training step of a curve with one bend against one of plain training, under the same trainer.

    pytest -m benchmark tests/benchmarks/bench_curve.py -s

Both run the network's own ``training_step``, backward pass and SGD with momentum, plain training with the
same weight decay; runs alternate, and what is compared
is the median of the CPU seconds per step (logging of the curve's loss included).  Memory is what lives at the end of a
forward pass beyond the learned weights and the activations: counted in sets of weights, see the test.
"""

import copy
import gc
import statistics
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.models import ResNet20, mlp
from helpers.quiet import fit_quietly, quiet_trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin import CurveModule, measure_barrier, measure_path
from lightning_rebasin.modules.trainable import trainable_point

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
STEPS, WARM_UP, TURNS = 25, 5, 4
SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(LightningModule):
    """Cross-entropy around a network."""

    def __init__(self, network, decay=0.0):
        super().__init__()
        self.network = network
        self.decay = decay

    def training_step(self, batch, batch_idx):
        loss = cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        """Never run; a trainer warns without."""

    def configure_optimizers(self):
        return SGD(self.parameters(), weight_decay=self.decay)


class Clock(Callback):
    """CPU seconds of every step."""

    def __init__(self):
        self.seconds = []

    def on_train_batch_start(self, *_):
        self._begin = time.process_time()

    def on_train_batch_end(self, *_):
        self.seconds.append(time.process_time() - self._begin)


def random_data(shape, batch):
    x = torch.randn(batch * STEPS, *shape)
    y = torch.randint(10, (len(x),))
    return DataLoader(TensorDataset(x, y), batch_size=batch)


def seconds(module, loader, folder):
    clock = Clock()
    trainer = quiet_trainer(
        folder, max_epochs=1, callbacks=[clock], limit_val_batches=0
    )
    fit_quietly(trainer, module, loader, loader)
    return statistics.median(clock.seconds[WARM_UP:])


@pytest.mark.parametrize("decay", [0.0, 5e-4])
@pytest.mark.parametrize(
    ("name", "make", "shape", "batch"),
    [
        ("MLP 784-512³-10", lambda: mlp(784, 512, 512, 512, 10), (784,), 128),
        ("MLP 784-512³-10", lambda: mlp(784, 512, 512, 512, 10), (784,), 250),
        ("ResNet-20", ResNet20, (3, 32, 32), 32),
    ],
)
def test_what_a_step_costs(name, make, shape, batch, decay, tmp_path: Path):
    loader = random_data(shape, batch)
    ends = [copy.deepcopy(Net(make()).state_dict()) for _ in range(2)]
    plain, curve = [], []
    for _ in range(TURNS):
        plain.append(seconds(Net(make(), decay), loader, tmp_path))
        module = CurveModule(
            Net(make()), ends, optimizer=SGD, weight_decay=decay
        )
        curve.append(seconds(module, loader, tmp_path))
    ratio = statistics.median(c / p for c, p in zip(curve, plain, strict=True))
    print(
        f"\n{name}, batch {batch}, weight decay {decay:g}: plain {1e3 * statistics.median(plain):.1f} ms, "
        f"curve {1e3 * statistics.median(curve):.1f} ms, ratio {ratio:.2f} (wanted: 1.25)"
    )


def test_memory_is_two_ends_and_one_point():
    """Of everything that lives in the middle of a step: ends 2, bend 1, point 1; the network shares the first end's."""
    gc.collect()
    before = _elements()
    network = mlp(784, 512, 512, 512, 10)
    size = sum(p.numel() for p in network.parameters())
    seen = []

    def loss(model, batch):
        gc.collect()
        seen.append(_elements())
        return model(batch).square().mean()

    module = _made(network, loss)
    point = module.draw(module.options.generator(0, 0))[0]
    weights = trainable_point(point, module.names.trained, module.anchors)
    module.inner.loss_at(weights, torch.randn(2, 784), 0).backward()
    # The user's own network lives as well.
    sets = (seen[0] - before) / size - 1
    print(f"\n{sets:.2f} sets of weights live in a step")
    assert sets < 4.1


class Counting(Net):
    """Counts the tensors that live when the loss of the third step is computed: momenta are there by then."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 2:
            gc.collect()
            COUNTED.append(_elements())
        return loss


COUNTED = []


@pytest.mark.parametrize("bends", [1, 2, 3])
def test_memory_above_plain_training(bends, tmp_path: Path):
    """Sets of weights above plain training: two ends, a point, and for each further bend itself and its momentum.

    Gradients are gone when a step begins, in both.
    """
    loader = random_data((784,), 8)
    network = mlp(784, 512, 512, 512, 10)
    size = sum(p.numel() for p in network.parameters())
    above = []
    for make in (
        lambda: Counting(network),
        lambda: CurveModule(
            Counting(network),
            _two(Net(network)),
            bends=bends,
            optimizer=SGD,
        ),
    ):
        gc.collect()
        before = _elements()
        module = make()
        seconds(module, loader, tmp_path)
        above.append((COUNTED.pop() - before) / size)
        del module
    plain, curve = above
    print(
        f"\n{bends} bends: plain {plain:.2f} sets of weights beside the network's own, curve {curve:.2f}; "
        f"{curve - plain:.2f} more, {(curve - plain - 2) / bends:.2f} a bend without the two ends (wanted: 2)"
    )


def _two(network):
    """Two ends."""
    return [
        {n: torch.randn_like(t) for n, t in network.state_dict().items()}
        for _ in range(2)
    ]


class Scored(Net):
    """Measured by its own step."""

    def validation_step(self, batch, batch_idx):
        self.log("loss", cross_entropy(self.network(batch[0]), batch[1]))


@pytest.mark.parametrize(
    ("name", "make", "shape", "batch"),
    [
        ("MLP 784-512³-10", lambda: mlp(784, 512, 512, 512, 10), (784,), 250),
        ("ResNet-20", ResNet20, (3, 32, 32), 32),
    ],
)
def test_what_a_measured_point_costs(name, make, shape, batch):
    """A point of a learned curve against one of ``measure_barrier``: three anchors instead of two."""
    data = list(random_data(shape, batch))[:6]
    module = Scored(make()).eval()
    ends = [copy.deepcopy(Scored(make()).state_dict()) for _ in range(2)]
    path = CurveModule(module, ends, optimizer=SGD).path
    grid = [k / 8 for k in range(9)]
    line, curve = [], []
    for _ in range(TURNS):
        line.append(
            _clocked(lambda: measure_barrier(module, *ends, data, points=grid))
        )
        curve.append(_clocked(lambda: measure_path(module, path, data, grid)))
    ratio = statistics.median(c / b for c, b in zip(curve, line, strict=True))
    per_point = 1e3 / len(grid) / len(data)
    print(
        f"\n{name}, batch {batch}: measure_barrier {per_point * statistics.median(line):.1f} ms a point and batch, "
        f"curve {per_point * statistics.median(curve):.1f} ms, ratio {ratio:.2f} (wanted: 1.1)"
    )


def _clocked(run):
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _made(network, loss):
    """In a function of its own: Lightning looks at the locals of all callers, and Python 3.11 keeps what it saw."""
    return CurveModule(network, _two(network), loss=loss)


def _elements():
    """Elements of all tensors alive, each storage once."""
    found = {}
    for thing in gc.get_objects():
        # Not isinstance: lazy objects warn when they are asked for their class.
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes() // 4
    return sum(found.values())
