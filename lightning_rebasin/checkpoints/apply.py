"""A permutation, or another transform, applied to a checkpoint file, with the optimizer's state if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lightning_rebasin.checkpoints.align import example_input
from lightning_rebasin.checkpoints.inputs import sha256
from lightning_rebasin.checkpoints.optimizer import move_optimizer_states
from lightning_rebasin.checkpoints.provenance import kinds_of
from lightning_rebasin.checkpoints.read import VERSION_KEY, Checkpoint
from lightning_rebasin.checkpoints.write import (
    PROVENANCE_KEY,
    RUN_STATE,
    write_checkpoint,
)
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.merging.statistics import copied
from lightning_rebasin.symmetry import Transform, check_equivalence

#: Entries of a run that a transform leaves valid as they are; weights kept beside the main ones are not among them.
_KEPT = RUN_STATE - {
    PROVENANCE_KEY,
    VERSION_KEY,
    "current_model_state",
    "averaging_state",
    "optimizer_states",
}


def apply_to_checkpoint(
    checkpoint: Checkpoint,
    transform: Transform,
    output: str | Path,
    *,
    module: nn.Module | None = None,
    example: Any = None,
    permute_optimizer: bool = False,
    force: bool = False,
) -> float | None:
    """Transform a checkpoint's weights and write the result in its format.

    Args:
        checkpoint: Read with the names of the transform's spec.
        transform: What to apply.
        output: The file to write.
        module: The network, to prove the transform on it and to know its optimizers.
        example: Example input, if the module has no ``example_input_array``.
        permute_optimizer: Keep the state of the training run and move the optimizer's part of it as far as there are
            exact rules; otherwise training starts afresh from the new weights.
        force: Overwrite an existing file.

    Returns:
        The relative output error of the new network, ``None`` without a module.

    Raises:
        ConfigurationError: There is no optimizer state to permute.
        CheckpointError: The optimizer's state does not fit the network.
        EquivalenceError: The new network computes another function; nothing was written.
        OutputError: The output exists or cannot be written.
    """
    error = None
    if module is not None:
        network = copied(module)
        network.load_state_dict(checkpoint.state_dict)
        error = check_equivalence(
            network, transform, *example_input(network, example, None)
        )
    run_state = None
    if permute_optimizer:
        states = checkpoint.metadata.get("optimizer_states")
        if not states:
            raise ConfigurationError(
                f"{checkpoint.path} holds no optimizer state, so there is none to permute"
            )
        run_state = {
            key: value
            for key, value in checkpoint.metadata.items()
            if key in _KEPT
        }
        run_state["optimizer_states"] = move_optimizer_states(
            states, transform, module, checkpoint.state_dict
        )
    moved = transform.apply(checkpoint.state_dict)
    provenance = {
        "method": "apply",
        "inputs": [
            {
                "name": checkpoint.path.name,
                "sha256": sha256(checkpoint.path),
                "format": checkpoint.format,
            }
        ],
        "kinds": kinds_of(transform.spec),
        "permutations": [dict(transform.elements)],
    }
    kept = {
        name: tensor
        for name, tensor in moved.items()
        if name in checkpoint.names
    }
    write_checkpoint(
        output,
        kept,
        like=checkpoint,
        provenance=provenance,
        run_state=run_state,
        force=force,
    )
    return error
