"""Looking at the data before a run: which batches, and that nobody notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import CLASSES, FEATURES, Classifier
from helpers.merging import State, fit, in_setup, make
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_rebasin.modules.batches import example_inputs, first_batches


class FirstSample(Callback):
    """Remembers the first training batch."""

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx == 0:
            self.batch = batch[0]
            self.noise = torch.rand(
                3, generator=torch.default_generator.clone_state()
            )


def test_looking_at_the_data_changes_neither_their_order_nor_the_random_state(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    seen = []
    for init in ("identity", "activations", None):
        first = FirstSample()
        torch.manual_seed(1)
        module = (
            Classifier(hidden=16) if init is None else make(ends, init=init)
        )
        torch.manual_seed(1)
        fit(
            module,
            tmp_path,
            max_epochs=1,
            callbacks=[first],
            limit_val_batches=0,
        )
        seen.append(first)
    assert torch.equal(seen[0].batch, seen[2].batch)
    assert torch.equal(seen[1].batch, seen[2].batch)
    assert torch.equal(seen[0].noise, seen[2].noise)
    assert torch.equal(seen[1].noise, seen[2].noise)


def numbered(samples: int = 10) -> TensorDataset:
    """Sample ``i`` is the number ``i``, wide enough for a Classifier."""
    numbers = torch.arange(float(samples))
    points = numbers[:, None].expand(samples, FEATURES).clone()
    return TensorDataset(points, torch.zeros(samples, dtype=torch.long))


def look(loaders: Any, folder: Path, count: int, run: str = "fit") -> Any:
    """What ``first_batches`` finds in ``setup``."""
    found: list[Any] = []

    def action(trainer: Trainer) -> None:
        found.extend(first_batches(trainer, count))

    in_setup(action, loaders, folder, run)
    return found


def numbers(batches: list[Any]) -> list[list[int]]:
    """The numbers of the samples in each batch."""
    return [[int(n) for n in x[:, 0]] for x, _ in batches]


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_the_first_batches_come_in_the_loaders_order(
    run: str, tmp_path: Path
) -> None:
    loader = DataLoader(numbered(), batch_size=4)
    whole = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for count in (1, 2, 3, 9):
        found = look(loader, tmp_path, count, run)
        assert numbers(found) == whole[:count]


def test_a_run_without_training_or_validation_data_shows_nothing(
    tmp_path: Path,
) -> None:
    class Tested(Classifier):
        def test_step(
            self, batch: tuple[Tensor, Tensor], batch_idx: int
        ) -> None:
            found.append(first_batches(self.trainer, 2))

    found: list[Any] = []
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    loader = DataLoader(numbered(4), batch_size=4)
    trainer.test(Tested(), loader, verbose=False)
    assert found == [[]]


def test_several_loaders_are_walked_together_until_the_shortest_ends(
    tmp_path: Path,
) -> None:
    loaders = {
        "long": DataLoader(numbered(6), batch_size=2),
        "short": DataLoader(numbered(4), batch_size=2),
    }
    found = look(loaders, tmp_path, 9)
    assert numbers([batch["long"] for batch in found]) == [[0, 1], [2, 3]]
    assert numbers([batch["short"] for batch in found]) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("holder", ["loader", "sampler"])
def test_generators_of_loader_and_sampler_are_given_back(
    holder: str, tmp_path: Path
) -> None:
    own = torch.Generator().manual_seed(3)
    data = numbered(64)
    if holder == "loader":
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=own)
    else:
        sampler = RandomSampler(data, generator=own)
        loader = DataLoader(data, batch_size=8, sampler=sampler)
    seen = []

    # Inside of setup: later on Lightning itself begins to iterate.
    def action(trainer: Trainer) -> None:
        before = own.get_state()
        seen.append(numbers(first_batches(trainer, 2)))
        assert torch.equal(own.get_state(), before)
        seen.append(numbers(list(loader)))

    in_setup(action, loader, tmp_path)
    looked_at, trained_on = seen
    assert looked_at[0] != list(range(8)), "it is shuffled"
    assert looked_at == trained_on[:2]


def test_the_global_random_state_is_given_back(tmp_path: Path) -> None:
    # Without a generator of its own, the loader draws a seed from the global one.
    loader = DataLoader(numbered(64), batch_size=8, shuffle=True)
    states = []

    def action(trainer: Trainer) -> None:
        states.append(torch.get_rng_state())
        assert len(first_batches(trainer, 2)) == 2
        states.append(torch.get_rng_state())

    in_setup(action, loader, tmp_path)
    assert torch.equal(states[0], states[1])


def test_example_inputs_are_arguments_of_forward() -> None:
    x, y = torch.zeros(2, FEATURES), torch.ones(1)
    model = Classifier()
    forms: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (x, (x,), {}),
        ((x, y), (x, y), {}),
        ({"x": x}, (), {"x": x}),
    ]
    for given, args, kwargs in forms:
        model.example_input_array = given
        assert example_inputs(model) == (args, kwargs)


def test_without_an_example_there_are_no_inputs() -> None:
    model = Classifier()
    model.example_input_array = None
    assert example_inputs(model) is None
    plain = nn.Linear(FEATURES, CLASSES)
    plain.example_input_array = torch.zeros(1, FEATURES)
    # Only of a LightningModule does the name mean anything.
    assert example_inputs(plain) is None
