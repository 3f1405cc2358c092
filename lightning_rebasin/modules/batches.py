"""What a MergeModule needs to see of the data before training starts: a few batches, and example inputs.

The batches are asked for in ``setup``, before the trainer has made its own iterator: iterating the same loader *during*
a run would advance the global random state, and with persistent workers would end the trainer's own pass over the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn


def first_batches(trainer: Trainer, count: int) -> list[Any]:
    """The first training batches (validation batches outside of ``fit``), on the CPU, leaving the random state alone.

    Args:
        trainer: A trainer inside ``setup``.
        count: How many at most.

    Returns:
        Batches as the loader gives them; empty if the trainer has no data.
    """
    # Lightning offers no public way to ask for the training loader before the fit loop does.
    fits = trainer.state.fn == "fit"
    return _first(trainer.fit_loop if fits else trainer.validate_loop, count)


def held_out_batches(trainer: Trainer, count: int) -> list[Any]:
    """The first validation batches, or the first training batches where there are no others.

    Args:
        trainer: A trainer inside ``setup``.
        count: How many at most.
    """
    found = []
    if trainer.state.fn == "fit" and trainer.enable_validation:
        found = _first(trainer.fit_loop.epoch_loop.val_loop, count)
    return found or first_batches(trainer, count)


def _first(loop: Any, count: int) -> list[Any]:
    """The first batches that a loop of the trainer would get."""
    source = loop._data_source
    if source.instance is None or not source.is_defined():
        return []
    with isolate_rng():
        loader = source.dataloader()
        if isinstance(loader, Mapping | Sequence):
            loader = CombinedLoader(loader, "min_size")
        combined = isinstance(loader, CombinedLoader)
        with _untouched(loader.flattened if combined else [loader]):
            batches = list(itertools.islice(loader, count))
    return [batch for batch, _, _ in batches] if combined else batches


@contextmanager
def _untouched(loaders: list[Any]) -> Iterator[None]:
    """Give the loaders' own generators back as they were, so that training sees the same order of samples."""
    holders = [
        holder
        for loader in loaders
        for holder in (loader, getattr(loader, "sampler", None))
    ]
    found = [getattr(holder, "generator", None) for holder in holders]
    states = [
        (generator, generator.get_state())
        for generator in found
        if isinstance(generator, torch.Generator)
    ]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def example_inputs(
    model: nn.Module,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """``example_input_array`` of a LightningModule as arguments of its forward, or ``None``."""
    example = (
        model.example_input_array
        if isinstance(model, LightningModule)
        else None
    )
    if example is None:
        return None
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}
