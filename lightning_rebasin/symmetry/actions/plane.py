"""One complex factor for each pair of units: the kind ``"plane"``.

Rotary positions turn pairs of query units, and the same pairs of key units, by an angle that depends on the position.
What commutes with all these turns is the multiplication of each pair, read as one complex number, by a complex factor:
queries times u, keys times 1/ū keeps ``Re(q·k̄)``.

Units 2p and 2p + 1 of the group are pair p, wherever they lie in the weights.  An element is a float64 tensor
``(*group.shape[:-1], size / 2, 2)``: real and imaginary part of each factor.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.action import Action, register_action
from lightning_rebasin.symmetry.actions.arithmetic import (
    are_real_numbers,
    length_balance,
    wide,
    with_precision_of,
)
from lightning_rebasin.symmetry.spec.values import Group

#: Factors lie between one over this and this.
LARGEST = 1e6
_SPREAD = 1.0


@final
class PlaneAction(Action):
    """Complex factors other than 0 for pairs of units."""

    kind = "plane"
    stretches = True

    def identity(self, group: Group) -> Tensor:
        """All factors 1."""
        found = torch.zeros(_shape(group), dtype=torch.float64)
        found[..., 0] = 1
        return found

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Any angle, and a length between 1/e and e."""
        uniform = torch.rand(
            _shape(group), generator=generator, dtype=torch.float64
        )
        length = torch.exp(_SPREAD * (2 * uniform[..., 0] - 1))
        angle = 2 * torch.pi * uniform[..., 1]
        return torch.stack([length * angle.cos(), length * angle.sin()], -1)

    def check(self, group: Group, element: Tensor) -> Tensor:
        """A float64 copy on the CPU.

        Raises:
            TransformError: Not complex factors of moderate size in the shape that the group needs.
        """
        fits = are_real_numbers(element, _shape(group))
        lengths = element.double().norm(dim=-1) if fits else torch.zeros(1)
        if not bool(((lengths > 1 / LARGEST) & (lengths < LARGEST)).all()):
            raise TransformError(
                f"group {group.id!r}: factors must be complex numbers, not 0, as a tensor of the shape {_shape(group)}"
            )
        return element.detach().cpu().double().clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """The product of the factors."""
        return _times(after, before)

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """``ū / |u|²``."""
        conjugate = element * torch.tensor([1.0, -1.0], dtype=element.dtype)
        return conjugate / element.square().sum(-1, keepdim=True)

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """Pairs times u where they are queries, times ``1/ū = u/|u|²`` where they are keys."""
        factors = element.reshape(group.instances, -1, 2, 1).to(units.device)
        if power < 0:
            factors = factors / factors.square().sum(2, keepdim=True)
        rest = units.shape[-1]
        pairs = wide(units, factors).reshape(group.instances, -1, 2, rest)
        real = (
            factors[:, :, :1] * pairs[:, :, :1]
            - factors[:, :, 1:] * (pairs[:, :, 1:])
        )
        imaginary = (
            factors[:, :, :1] * pairs[:, :, 1:]
            + factors[:, :, 1:] * (pairs[:, :, :1])
        )
        changed = torch.cat([real, imaginary], 2).reshape(units.shape)
        return with_precision_of(units, changed)

    def latent(self, group: Group) -> Tensor:
        """Logarithm of the length, and angle, of each factor."""
        return torch.zeros(_shape(group))

    def from_latent(self, group: Group, latent: Tensor) -> Tensor:
        """``exp`` of the latent as a complex number, its length kept within two orders of magnitude."""
        length = torch.exp(4.6 * torch.tanh(latent[..., 0] / 4.6))
        angle = latent[..., 1]
        return torch.stack([length * angle.cos(), length * angle.sin()], -1)

    def balance(self, group: Group, plus: Tensor, minus: Tensor) -> Tensor:
        """Real factors: ``(H / G)^¼``, with the lengths of both units of a pair together."""
        pairs = (group.instances, group.size // 2, 2)
        g, h = (
            gram.diagonal(dim1=-2, dim2=-1).reshape(pairs).sum(-1)
            for gram in (plus, minus)
        )
        lengths = length_balance(g, h).reshape(_shape(group)[:-1])
        return torch.stack([lengths, torch.zeros_like(lengths)], -1)

    def distance(self, group: Group, element: Tensor) -> float:
        """Mean of ``|u − 1|``, 1 at most for each."""
        one = torch.tensor([1.0, 0.0], dtype=element.dtype)
        return float((element - one).norm(dim=-1).clamp(max=1).mean())


def _shape(group: Group) -> tuple[int, ...]:
    return (*group.shape[:-1], group.size // 2, 2)


def _times(a: Tensor, b: Tensor) -> Tensor:
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    imaginary = a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]
    return torch.stack([real, imaginary], -1)


PLANE = register_action(PlaneAction())
