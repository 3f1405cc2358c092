"""Copies that are evaluated instead of the user's module, and random numbers that are given back.

A copy that is only *run* (inference, proof) comes from ``symmetry/run/copy.py``.  This one gets other weights written
into it, in the middle of a training, by the names that the module itself gives them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry.run.copy import run_own_code, uncompiled


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy for evaluation: in eval mode, without gradients, not compiled.

    Raises:
        ConfigurationError: The module holds something that cannot be copied.
    """
    # trainer.validate and trainer.test run in inference mode; tensors made there could never be used elsewhere.
    with torch.inference_mode(mode=False), torch.no_grad():
        try:
            clone = copy.deepcopy(module)
        except (
            Exception
        ) as error:  # anything a user's module holds may refuse to be copied
            raise ConfigurationError(
                f"{type(module).__name__} cannot be copied, which evaluating other weights needs: {error}. Keep open "
                "files, loaders, locks and non-leaf tensors out of the module, or define __deepcopy__"
            ) from error
        clone = uncompiled(clone)
        # Data-parallel wrappers stay: their names are those of the weights that the caller passes.
        run_own_code(clone, uncompiled)
        clone.eval()
        return clone.requires_grad_(requires_grad=False)


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Give the global generators back as they were; CUDA's only once CUDA is in use, so as not to start it."""
    # PyTorch leaves this function without annotations.
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with isolate_rng(include_cuda=cuda):
        yield
