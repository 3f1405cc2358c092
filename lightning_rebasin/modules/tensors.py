"""Which tensors of a network are learned on a path, which stay, and which a call needs."""

from __future__ import annotations

from typing import final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.merging.statistics import batch_norms, statistics_of


def check_built(model: nn.Module) -> None:
    """Refuse a network that has no weights yet.

    Raises:
        ConfigurationError: A layer is lazy, or the weights are made in ``configure_model``.
    """
    for name, tensor in model.named_parameters():
        if is_lazy(tensor):
            raise ConfigurationError(
                f"{name!r} is made by the first forward pass: run {type(model).__name__} once before it is passed"
            )
    if not any(True for _ in model.parameters()):
        late = isinstance(model, LightningModule) and is_overridden(
            "configure_model", model
        )
        hint = ": call its configure_model() first" if late else ""
        raise ConfigurationError(
            f"{type(model).__name__} has no parameters{hint}"
        )


@final
class TensorNames:
    """The names of a network's weights by what happens to them.

    Args:
        model: The user's network, which says what it wants trained.
        copy: The copy that computes the losses, not compiled.

    Raises:
        ConfigurationError: All parameters are frozen.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        >>> net[0].bias.requires_grad_(False) is net[0].bias
        True
        >>> names = TensorNames(net, net)
        >>> names.trained, names.fixed
        (('0.weight', '1.weight', '1.bias'), ('0.bias',))
    """

    def __init__(self, model: nn.Module, copy: nn.Module) -> None:
        wanted = {
            name.replace("_orig_mod.", "")
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        parameters = [name for name, _ in copy.named_parameters()]
        known = weights_of(copy)
        buffers = [name for name, _ in copy.named_buffers() if name in known]
        #: Batch-norm statistics, which training leaves to the network.
        self.statistics = frozenset(statistics_of(batch_norms(copy)))
        #: Learned: what the user's network trains.
        self.trained = tuple(name for name in parameters if name in wanted)
        if not self.trained:
            raise ConfigurationError(
                f"every parameter of {type(model).__name__} is frozen (requires_grad=False): nothing can be learned"
            )
        #: What a call needs, a tied tensor once.
        self.callable = (*parameters, *buffers)
        #: Of these, what is not learned and not estimated.
        self.fixed = tuple(
            name
            for name in self.callable
            if name not in self.trained and name not in self.statistics
        )
        #: Further names of tied parameters.
        self.aliases = _aliases(copy)


def _aliases(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            found[name] = known
    return found
