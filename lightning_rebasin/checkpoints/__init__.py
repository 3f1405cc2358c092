"""Checkpoint files: reading them safely, writing them whole, merging them."""

from lightning_rebasin.checkpoints.merge import merge_checkpoints
from lightning_rebasin.checkpoints.read import Checkpoint, read_checkpoint
from lightning_rebasin.checkpoints.report import MergeReport
from lightning_rebasin.checkpoints.write import write_checkpoint

__all__ = [
    "Checkpoint",
    "MergeReport",
    "merge_checkpoints",
    "read_checkpoint",
    "write_checkpoint",
]
