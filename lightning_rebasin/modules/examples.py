"""Example inputs of a network: its own ``example_input_array``, or the first batch of the data."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, final

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.matching.activation import model_inputs
from lightning_rebasin.modules.batches import example_inputs, first_batches
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.batch_example import batch_example

#: Positional and keyword arguments of a forward.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@final
class ExampleInputs:
    """Something to run a network on.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._found: Arguments | None = example_inputs(model)

    @property
    def known(self) -> bool:
        """Whether there are any."""
        return self._found is not None

    @property
    def runs_forward(self) -> bool:
        """Whether ``forward`` takes what the data loader gives; else only a whole step runs on a batch."""
        args = () if self._found is None else self._found[0]
        examples = [arg for arg in args if isinstance(arg, Example)]
        return all(example.method == "forward" for example in examples)

    @property
    def arguments(self) -> Arguments:
        """Arguments of the network's forward, or a batch for its ``validation_step`` or ``training_step``.

        Raises:
            ConfigurationError: There are none.
        """
        if self._found is None:
            raise ConfigurationError(
                f"no example inputs of {type(self._model).__name__}: set example_input_array on it, or fit first"
            )
        return self._found

    def look_at_data(self, trainer: Trainer) -> None:
        """Take example inputs from the first batch: always if there are none, else where they look the same.

        Real inputs prove more than the zeros that ``example_input_array`` often holds.
        """
        batches = first_batches(trainer, 1)
        if not batches:
            return
        # With neither, the spec must be given; that its absence is an error is said where it is needed.
        with suppress(DataError):
            if self._found is None:
                example = batch_example(self._model, batches[0], self._inputs)
                self._found = ((example,), {})
                return
            found = model_inputs(self._model, batches[0])
            if _look(found) == _look(self._found):
                self._found = found

    def _inputs(self, batch: Any) -> Example:
        return Example(*model_inputs(self._model, batch))


def _look(
    arguments: Arguments,
) -> list[tuple[torch.dtype, torch.Size] | Any]:
    """Dtypes and shapes of the inputs but for the batch dimension."""
    leaves = tree_flatten(arguments)[0]
    return [
        (leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    ]
