"""A network with its weights held fixed, run on inputs that move.

What is run is a private copy: in eval mode, without gradients of weights, sharing the memory of the parameters.  The
caller's module keeps its weights, buffers, gradients, modes and hooks, and :func:`alone` gives the random generators
back as they were.

Tokens are integers, and there is nothing between two integers.  Between two *embedded* texts there is: with the name of
the embedding layer the network is run on the tokens of the first end while that layer's output is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.symmetry.run.copy import private_copy
from lightning_rebasin.symmetry.run.lightning import is_lightning, silence


@contextmanager
def alone() -> Iterator[None]:
    """Leave no trace in the random generators, and allow gradients even in the middle of a validation."""
    # Validation runs in inference mode; tensors that are made there never take part in a backward pass.
    with torch.inference_mode(mode=False), isolated_rng():
        yield


@final
class InputNetwork:
    """A private copy of a network.

    Args:
        module: The network; ``forward`` takes a batch of inputs.
        embedding: Name of the submodule that embeds tokens, as in ``named_modules``.

    Raises:
        ConfigurationError: There is no submodule of this name.
        TraceError: The module holds something that cannot be copied.

    Example:
        >>> network = InputNetwork(nn.Linear(2, 1))
        >>> network(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self, module: nn.Module, embedding: str | None = None
    ) -> None:
        self._module = private_copy(module, share=True)
        if is_lightning(self._module):
            # A forward that logs would complain that it has no trainer.
            silence(self._module, module)
        self._module.requires_grad_(requires_grad=False)
        self._embedding = self._find(embedding)
        self._replacement: Tensor | None = None
        self._replaced = 0
        if self._embedding is not None:
            self._embedding.register_forward_hook(self._replace)

    @property
    def name(self) -> str:
        """What messages call the network."""
        return type(self._module).__name__

    @property
    def embeds(self) -> bool:
        """Whether inputs are tokens, and points lie among their embeddings."""
        return self._embedding is not None

    @property
    def like(self) -> Tensor:
        """A floating-point tensor of the network: points have its dtype and device."""
        for tensor in (*self._module.parameters(), *self._module.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.zeros(())

    def __call__(self, points: Tensor, tokens: Tensor | None = None) -> Any:
        """The output at points of input space.

        Args:
            points: Shape ``(n, *input)``.
            tokens: With an embedding, tokens of shape ``(n, ...)`` that the network is called with.

        Raises:
            ConfigurationError: The embedding layer was not called exactly once.
        """
        if not self.embeds:
            return self._module(points)
        self._replacement, self._replaced = points, 0
        output = self._module(tokens)
        self._replacement = None
        if self._replaced != 1:
            raise ConfigurationError(
                f"{self.name} called the embedding {self._replaced} times in one forward pass; name the layer that "
                "embeds the tokens once"
            )
        return output

    def embed(self, tokens: Tensor) -> Tensor:
        """The output of the embedding layer for tokens of shape ``(n, ...)``."""
        assert self._embedding is not None
        with torch.no_grad():
            embedded: Tensor = self._embedding(tokens)
        return embedded.clone()

    def try_out(self, points: Tensor, tokens: Tensor | None) -> Any:
        """Run on one input, and say so if that fails.

        Raises:
            DataError: The network does not take such inputs.
        """
        try:
            with torch.no_grad():
                return self(points, tokens)
        except ConfigurationError:
            raise
        except Exception as error:  # somebody's forward may raise anything
            raise DataError(
                f"{self.name} cannot be run on one input of shape {tuple(points.shape)} and dtype {points.dtype}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _find(self, name: str | None) -> nn.Module | None:
        """The submodule of this name."""
        if name is None:
            return None
        known: dict[str, nn.Module] = dict(self._module.named_modules())
        if not name or name not in known:
            layers = [
                n for n, m in known.items() if isinstance(m, nn.Embedding)
            ]
            raise ConfigurationError(
                f"embedding={name!r} is not a submodule of {self.name}; its embedding layers are "
                f"{', '.join(map(repr, layers)) or 'none'}"
            )
        return known[name]

    def _replace(self, *_: object) -> Tensor | None:
        """The forward hook of the embedding layer."""
        if self._replacement is None:
            return None
        self._replaced += 1
        return self._replacement
