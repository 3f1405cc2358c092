"""Untying: giving a weight that two modules share a tensor of its own in one of them.

A language model often uses the table of its embedding again as its head.  Whatever changes the one changes the other
then, so the gain of the last norm cannot be folded into the head, and the stream cannot be rotated.  With separate
tensors it can.  The untied network has more parameters and, to begin with, the same function; files of its weights
need a module that was untied as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry.run.copy import private_copy, unwrap

#: Where ``transformers`` says that the head is the table of the embedding.
TIED_SETTING = "tie_word_embeddings"


def untie(module: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of a module in which some tied weights are tensors of their own.

    Args:
        module: Any module; it is left as it was.
        names: Names of tied parameters, as ``spec.canonicalise(state, untie=True).names`` has them.  Where the module
            has a configuration of ``transformers`` that ties its head, the copy's says that it is not tied.

    Returns:
        The copy: the same function, and a state dict with the same names and shapes.

    Raises:
        ConfigurationError: The module has no such parameter, or no other name for it.

    Example:
        >>> net = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        >>> net["head"].weight = net["embed"].weight
        >>> free = untie(net, ["head.weight"])
        >>> len(list(net.parameters())), len(list(free.parameters()))
        (1, 2)
    """
    free = private_copy(module)
    # Compiled parts have lost their wrappers in the copy, and are found under other names.
    modes = {n: part.training for n, part in unwrap(module).named_modules()}
    for name, part in free.named_modules():
        part.training = modes.get(name, modes[""])
    separate(free, names)
    return free


def separate(module: nn.Module, names: Iterable[str]) -> None:
    """:func:`untie`, in place.

    Raises:
        ConfigurationError: The module has no such parameter, or no other name for it.
    """
    # A module that several names lead to is met once under each of them.
    done: set[tuple[int, str]] = set()
    for name in names:
        owner, attribute = _owner(module, name)
        if (id(owner), attribute) in done:
            continue
        done.add((id(owner), attribute))
        parameter = owner._parameters[attribute]
        assert parameter is not None
        others = _owners_of(module, parameter)
        if len(others) < 2:
            raise ConfigurationError(
                f"cannot untie {name!r}: no other module has the same tensor"
            )
        own = parameter.detach().clone()
        twin = nn.Parameter(own, parameter.requires_grad)
        owner._parameters[attribute] = twin
    _say_untied(module)


def separable(
    module: nn.Module, aliases: Mapping[str, str], weights: Iterable[str]
) -> list[tuple[str, ...]]:
    """Names under which some weights could have tensors of their own, one set of names for each tensor.

    Args:
        module: The network.
        aliases: Tied tensors: name → first name of the same tensor.
        weights: First names of the weights in question.

    Returns:
        The other names of these weights, as far as they belong to another module than the first name does; names of
        one module belong together.
    """
    wanted = set(weights)
    found: dict[int, tuple[str, ...]] = {}
    for name, origin in aliases.items():
        if origin not in wanted or not _is_parameter(module, name):
            continue
        # Two names of one module cannot have different tensors.
        owner, first = _owner(module, name)[0], _owner(module, origin)[0]
        if owner is not first:
            known = found.get(id(owner), ())
            found[id(owner)] = (*known, name)
    return list(found.values())


def _is_parameter(module: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    return attribute in module.get_submodule(path)._parameters


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and its name there."""
    path, _, attribute = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        owner = nn.Module()
    if owner._parameters.get(attribute) is None:
        raise ConfigurationError(
            f"cannot untie {name!r}: the module has no such parameter"
        )
    return owner, attribute


def _owners_of(
    module: nn.Module, parameter: nn.Parameter
) -> set[tuple[int, str]]:
    """Every module that holds a parameter, with its name there."""
    found = set()
    for part in module.modules():
        for attribute, value in part._parameters.items():
            if value is parameter:
                found.add((id(part), attribute))
    return found


def _say_untied(module: nn.Module) -> None:
    """Configurations of ``transformers`` in the module no longer say that the head is tied."""
    for part in module.modules():
        config = vars(part).get("config")
        if getattr(config, TIED_SETTING, False) is True:
            setattr(config, TIED_SETTING, False)
