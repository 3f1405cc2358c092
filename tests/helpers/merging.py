"""Two short trainings, and one fit of a MergeModule between them: shared by the tests of its parts."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from helpers.classifier import Classifier, blobs
from lightning_rebasin.modules import MergeModule

State = dict[str, Tensor]


def train_data(*, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        blobs(192, 0), batch_size=32, shuffle=shuffle, generator=generator
    )


def held_out() -> DataLoader[tuple[Tensor, ...]]:
    """The last batch is smaller than the others."""
    return DataLoader(blobs(50, 1), batch_size=16)


def trained(model: nn.Module, seed: int, steps: int = 60) -> State:
    """The weights of a model after a short training from another start."""
    torch.manual_seed(seed)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for x, y in itertools.islice(itertools.cycle(train_data()), steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return copy.deepcopy(model.state_dict())


def make(
    ends: tuple[State | str | Path, State | str | Path], **options: Any
) -> MergeModule:
    options.setdefault(
        "optimizer", partial(torch.optim.SGD, lr=1.0, momentum=0.9)
    )
    return MergeModule(Classifier(hidden=16), *ends, **options)


def fit(
    module: LightningModule,
    folder: Path,
    *,
    ckpt_path: str | None = None,
    shuffle: bool = True,
    **options: Any,
) -> Trainer:
    defaults = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
    }
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    trainer = Trainer(
        **{
            **defaults,
            **quiet,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **options,
        }
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*"
        )
        warnings.filterwarnings("ignore", message=".*is deprecated.*")
        warnings.filterwarnings(
            "ignore", message=".*callbacks used to create the checkpoint.*"
        )
        trainer.fit(
            module,
            train_data(shuffle=shuffle),
            held_out(),
            ckpt_path=ckpt_path,
        )
    return trainer


def held_out_loss(model: nn.Module, weights: State) -> float:
    model = copy.deepcopy(model).eval()
    model.load_state_dict(weights, strict=False)
    x, y = next(iter(DataLoader(blobs(50, 1), batch_size=50)))
    with torch.no_grad():
        return float(cross_entropy(model(x), y))


class _Setup(Classifier):
    """Runs something in ``setup``, when the trainer knows the data but has not touched them."""

    def __init__(self, action: Callable[[Trainer], None]) -> None:
        super().__init__()
        self._action = action

    def setup(self, stage: str) -> None:
        self._action(self.trainer)


def in_setup(
    action: Callable[[Trainer], None],
    loaders: Any,
    folder: Path,
    run: str = "fit",
) -> None:
    """Run ``action(trainer)`` inside ``setup`` of ``trainer.fit``, ``validate`` or ``test``.

    A fit ends after ``setup``; the others go on to look at one batch.
    """
    trainer = Trainer(
        max_epochs=0,
        limit_val_batches=1,
        limit_test_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(trainer, run)(_Setup(action), loaders)
