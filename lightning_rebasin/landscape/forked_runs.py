"""Trainings that are forked: one parent that leaves checkpoints behind, children that go on from them in other orders.

Every run is an ordinary ``Trainer.fit`` that is resumed from a checkpoint.  What differs between two children is the
state of the random number generators when it starts, hence the order of the data, augmentation and dropout.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.files import atomic_path
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.quiet import quiet_lightning


@final
@dataclass(frozen=True)
class ForkedRuns:
    """How one network is trained, from whatever seed and fork.

    Args:
        make: Makes the network with fresh weights.
        train: Training batches in random order.
        max_epochs: Epochs of a whole training.
        trainer_options: Further arguments of ``Trainer``.
    """

    make: Callable[[], LightningModule]
    train: Iterable[Any]
    max_epochs: int
    trainer_options: Mapping[str, Any] = field(default_factory=dict)

    def network(self, seed: int) -> LightningModule:
        """The network as a training with this seed begins.

        Raises:
            ConfigurationError: It is not a LightningModule.
        """
        with seeded([seed, 0]):
            module = self.make()
        if not isinstance(module, LightningModule):
            raise ConfigurationError(
                f"the training of a {type(module).__name__} is unknown: make must give a LightningModule"
            )
        return module

    def parent(self, seed: int, forks: Mapping[int, Path]) -> None:
        """Train up to the last fork.

        Args:
            seed: Of weights and order.
            forks: Where to write the checkpoint of each step, all of them positive.

        Raises:
            ConfigurationError: The training ends before a fork.
        """
        saver = _ForkSaver(forks)
        module = self.network(seed)
        self._fit(module, [seed, 1], None, [saver])
        missing = sorted(set(forks) - saver.saved)
        if missing:
            raise ConfigurationError(
                f"the training ends before its fork at step {missing[0]}"
            )

    def child(
        self, seed: int, number: int, start: Path | None, result: Path
    ) -> int:
        """Train to the end from a checkpoint of the parent, or from the beginning.

        Args:
            seed: Of the parent.
            number: Which of the children: it has an order of its own.
            start: The checkpoint; ``None`` begins where the parent began.
            result: The file to write: a Lightning checkpoint of the weights.

        Returns:
            The steps of the whole training.
        """
        module = self.network(seed)
        trainer = self._fit(module, [seed, 1 + number], start, [])
        with atomic_path(result) as temporary:
            trainer.save_checkpoint(temporary, weights_only=True)
        return trainer.global_step

    def _fit(
        self,
        module: LightningModule,
        entropy: Sequence[int],
        start: Path | None,
        callbacks: list[Callback],
    ) -> Trainer:
        options = {
            "accelerator": "auto",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            **self.trainer_options,
        }
        own = [*options.pop("callbacks", []), *callbacks]
        with quiet_lightning(), seeded(entropy, self.train):
            trainer = Trainer(
                max_epochs=self.max_epochs, callbacks=own, **options
            )
            trainer.fit(module, self.train, ckpt_path=start)
        return trainer


@contextmanager
def seeded(
    entropy: Sequence[int], loader: Iterable[Any] | None = None
) -> Iterator[None]:
    """Seed every generator that data orders are drawn from, and give all of them back as they were.

    Args:
        entropy: Numbers that decide the state.
        loader: Its own generator, if it has one, is seeded too.
    """
    number = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    own = getattr(loader, "generator", None)
    kept = own.get_state() if own is not None else None
    with isolated_rng():
        torch.manual_seed(number)
        random.seed(number)
        # The user's transforms may draw from NumPy's global generator.
        np.random.seed(number)  # noqa: NPY002
        if own is not None:
            own.manual_seed(number)
        try:
            yield
        finally:
            if own is not None:
                own.set_state(kept)


def length_of(train: Iterable[Any]) -> int | None:
    """Batches of an epoch, if they can be counted."""
    if isinstance(train, DataLoader | Sequence):
        return len(train)
    return None


class _ForkSaver(Callback):
    """Writes checkpoints at given steps, and stops the training after the last one.

    Args:
        forks: Where to write the checkpoint of each step.
    """

    def __init__(self, forks: Mapping[int, Path]) -> None:
        self._forks = forks
        self.saved: set[int] = set()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save if this is the step of a fork."""
        step = trainer.global_step
        # With accumulated gradients several batches end at one step.
        if step in self._forks and step not in self.saved:
            with atomic_path(self._forks[step]) as temporary:
                trainer.save_checkpoint(temporary)
            self.saved.add(step)
        if self.saved == set(self._forks):
            trainer.should_stop = True
