"""Whether an inferred spec leaves a network's function unchanged, judged without the package's gate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.infer import infer_spec
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval mode, every parameter and statistic random and positive where it has to be."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for tensor in module.parameters():
            fan = max(1, tensor[0].numel()) if tensor.ndim > 1 else 4
            tensor.copy_(
                torch.randn(
                    tensor.shape, generator=generator, dtype=torch.float64
                )
                / fan**0.5
            )
        for name, tensor in module.named_buffers():
            if name.endswith("running_mean"):
                tensor.copy_(
                    0.1
                    * torch.randn(
                        tensor.shape, generator=generator, dtype=torch.float64
                    )
                )
            elif name.endswith("running_var"):
                tensor.copy_(
                    0.5
                    + torch.rand(
                        tensor.shape, generator=generator, dtype=torch.float64
                    )
                )
    return module


def difference(a: Any, b: Any) -> float:
    """Largest difference of two outputs, relative to the largest value."""
    pairs = zip(_tensors(a), _tensors(b), strict=True)
    return max(
        float((x - y).abs().max() / x.abs().max().clamp_min(1e-30))
        for x, y in pairs
    )


def exact(
    module: nn.Module,
    *args: Any,
    spec: PermutationSpec | None = None,
    **kwargs: Any,
) -> PermutationSpec:
    """Infer the spec of a randomised copy, permute every group at random, and demand the same function.

    Also demands that permuting one tensor alone does change it (otherwise the test could not fail).
    """
    module = randomised(module)
    spec = spec or infer_spec(module, *args, **kwargs)
    state = {
        name: tensor.clone() for name, tensor in module.state_dict().items()
    }
    with torch.no_grad():
        before = module(*args, **kwargs)
        for seed in range(2):
            moved = Permutation.random(
                spec, torch.Generator().manual_seed(seed)
            ).apply(state)
            module.load_state_dict(moved)
            assert difference(before, module(*args, **kwargs)) < 1e-10, str(
                spec
            )
        changed = []
        for name in [
            n for n in spec.maps if not torch.equal(moved[n], state[n])
        ][:4]:
            module.load_state_dict({**state, name: moved[name]})
            changed.append(difference(before, module(*args, **kwargs)))
        module.load_state_dict(state)
    assert not spec.groups or max(changed) > 1e-6, "the control does not move"
    return spec


def log10(*groups: tuple[int, int]) -> float:
    """``log10`` of a product of factorials: pairs of a size and how many such groups."""
    return sum(
        count * math.lgamma(size + 1) / math.log(10) for size, count in groups
    )


def _tensors(output: Any) -> list[Tensor]:
    return [
        leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)
    ]
