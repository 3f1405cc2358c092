"""Checkpoint files: reading them safely, writing them whole, merging them.

``read.py`` and ``write.py`` know the formats (``unpickle.py`` and ``guard.py`` what may be inside, ``names.py`` the
prefixes).  ``merge.py`` has the stages of a merge in order, and ``options.py`` what it is asked to do; each stage is a
file: ``inputs.py``, ``align.py``, ``choose.py`` (which way of merging measures best), ``correct.py``,
``provenance.py``. ``report.py`` is what comes out, ``advice.py`` the sentences that go with it.  ``apply.py`` permutes
a single file, ``optimizer.py`` its optimizer's state.
"""

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
