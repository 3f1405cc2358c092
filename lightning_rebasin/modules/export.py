"""Writing what a MergeModule learned: proved first, then the merged weights as a normal checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.examples import Arguments
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.proof.gate import check_equivalence


def export_merged(
    path: str | Path,
    model: nn.Module,
    ends: Endpoints,
    transform: Transform,
    merged: Mapping[str, Tensor],
    *,
    example: Arguments,
    history: Mapping[str, Any],
    force: bool,
) -> None:
    """Prove a transform of the source, then write the merged weights in the names of the reference.

    Args:
        path: The file to write; the extension decides the format.
        model: The network, whose weights are overwritten.
        ends: The two ends.
        transform: What was applied to the source.
        merged: The merged weights.
        example: Arguments of the network.
        history: How the weights were made.
        force: Overwrite an existing file.

    Raises:
        EquivalenceError: The transformed source does not compute the source's function; nothing is written.
        OutputError: The file exists, or cannot be written.
    """
    args, keywords = example
    source = ends.write_source(model)
    error = check_equivalence(source, transform, *args, **keywords)
    like = None
    if ends.reference_path is not None:
        like = read_checkpoint(ends.reference_path)
    write_checkpoint(
        path,
        merged,
        like=like,
        provenance={
            **history,
            "equivalence_error": error,
            "permutation": dict(transform.elements),
        },
        force=force,
    )
