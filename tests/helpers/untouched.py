"""A module, and the global generators, that a measurement must leave alone to the bit."""

from __future__ import annotations

import random
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(module: nn.Module):
    """Fails if parameters, buffers, gradients, modes or the global generators differ afterwards."""
    module.train()
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5 + number)
    # One part in another mode than the whole.
    next(reversed(list(module.modules()))).eval()
    before = snapshot(module)
    yield
    after = snapshot(module)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name])
            if isinstance(value, torch.Tensor)
            else value == after[name]
        )
        assert same, name


def snapshot(module: nn.Module) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, tensor in module.state_dict().items():
        found[f"state {name}"] = tensor.clone()
    for name, parameter in module.named_parameters():
        found[f"id {name}"] = id(parameter)
        found[f"requires {name}"] = parameter.requires_grad
        found[f"grad {name}"] = (
            "none" if parameter.grad is None else parameter.grad.clone()
        )
    for name, child in module.named_modules():
        found[f"mode {name}"] = child.training
        found[f"hooks {name}"] = len(child._forward_hooks)
    found["torch"] = torch.get_rng_state()
    found["numpy"] = str(np.random.get_state())  # noqa: NPY002
    found["python"] = random.getstate()
    return found
