"""Where the weights are in a file, and what their tensors are called.

People wrap the same weights in many ways: under ``state_dict`` (Lightning and most scripts), under ``model`` or
``net``, bare, or as a whole pickled module.  ``DataParallel`` and DDP put ``module.`` in front of every name,
``torch.compile`` puts ``_orig_mod.`` somewhere inside.  Reading undoes both; writing restores them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lightning_rebasin.checkpoints.unpickle import StandIn
from lightning_rebasin.errors import CheckpointError, StateDictError

#: Keys under which scripts keep the weights, most usual first.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
)
_COMPILED = "_orig_mod."
_PARALLEL = "module."


def find_weights(
    payload: Any, key: str | None
) -> tuple[dict[str, Tensor], str | None]:
    """The weights in what a file holds, and the key they were under (``None``: bare).

    Args:
        payload: The object that was read.
        key: Take exactly this key; ``None`` searches.

    Raises:
        CheckpointError: There are no weights, no such key, or several candidates.
    """
    if key is not None:
        return _weights_under(payload, key), key
    if not isinstance(payload, Mapping):
        state = as_state(payload)
        if state is None:
            kind = f"a {type(payload).__name__}"
            if isinstance(payload, StandIn):
                kind = repr(payload)
            raise CheckpointError(
                f"the file holds {kind}, not a dict of tensors"
            )
        return state, None
    found: dict[str, dict[str, Tensor]] = {}
    bare: dict[str, Tensor] = {}
    for name, value in payload.items():
        state = as_state(value)
        if state is not None:
            found[name] = state
        if isinstance(value, Tensor) and isinstance(name, str):
            bare[name] = value
    for name in WRAPPERS:
        if name in found:
            return found[name], name
    return (bare, None) if bare else _only_one(payload, found)


def _weights_under(payload: Any, key: str) -> dict[str, Tensor]:
    """The weights that somebody says are under ``key``."""
    there = type(payload).__name__
    if isinstance(payload, Mapping):
        state = as_state(payload.get(key))
        if state is not None:
            return state
        there = ", ".join(repr(name) for name in payload)
    raise CheckpointError(
        f"there are no weights under {key!r}; the file holds: {there}"
    )


def _only_one(
    payload: Mapping[Any, Any], found: Mapping[str, dict[str, Tensor]]
) -> tuple[dict[str, Tensor], str]:
    """The only weights in a file; which ones are meant must not be guessed."""
    if len(found) > 1:
        names = ", ".join(map(repr, found))
        raise CheckpointError(
            f"weights are under several keys: {names}; say which one with weights=... (--weights)"
        )
    for name, state in found.items():
        return state, str(name)
    keys = ", ".join(map(repr, payload)) or "none"
    raise CheckpointError(f"no tensors found; its keys are {keys}")


def as_state(value: Any) -> dict[str, Tensor] | None:
    """``value`` as a state dict if it is one, or is a whole module; otherwise ``None``.

    Entries that are no tensors (extra state of a module) are left out.
    """
    if isinstance(value, StandIn):
        value = _module_state(value) or value.mapping
    if not isinstance(value, Mapping):
        return None
    tensors = {
        name: tensor
        for name, tensor in value.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    return tensors if tensors and 2 * len(tensors) > len(value) else None


def _module_state(module: StandIn, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of a pickled ``nn.Module`` whose class was not imported."""
    parts = module.state if isinstance(module.state, Mapping) else {}
    parameters = dict(parts.get("_parameters") or {})
    buffers = dict(parts.get("_buffers") or {})
    for name in parts.get("_non_persistent_buffers_set") or ():
        buffers.pop(name, None)
    state = {}
    for name, tensor in {**parameters, **buffers}.items():
        if isinstance(tensor, Tensor):
            state[prefix + name] = tensor
    for name, child in (parts.get("_modules") or {}).items():
        if isinstance(child, StandIn):
            state |= _module_state(child, f"{prefix}{name}.")
    return state


def clean_names(
    names: Collection[str],
    prefix: str | Mapping[str, str] | None,
    *,
    lightning: bool,
) -> dict[str, str]:
    """Names without what wrappers added.

    Args:
        names: The names in the file.
        prefix: ``None`` removes ``_orig_mod.`` anywhere and, outside Lightning files, a ``module.`` that all names
            share; a string is removed from the front of every name (``""`` leaves the names alone); a mapping replaces
            prefixes.
        lightning: Whether Lightning wrote the file (a ``module.`` is then part of the user's own names).

    Returns:
        Clean name → name in the file, in the file's order.

    Raises:
        CheckpointError: A name lacks the prefix, or two names become the same.
    """
    clean: dict[str, str] = {}
    # A Lightning module may well have a submodule called "module".
    parallel = not lightning and all(n.startswith(_PARALLEL) for n in names)
    for name in names:
        if prefix is None:
            short = name.removeprefix(_PARALLEL) if parallel else name
            short = short.replace(_COMPILED, "")
        else:
            short = _without_prefix(name, prefix)
        if short in clean:
            raise CheckpointError(
                f"tensors {clean[short]!r} and {name!r} would both be called {short!r}"
            )
        clean[short] = name
    return clean


def _without_prefix(name: str, prefix: str | Mapping[str, str]) -> str:
    """A name after the user's own rule: a prefix to remove, or prefixes to replace, the longest that fits."""
    if isinstance(prefix, str):
        if not name.startswith(prefix):
            raise CheckpointError(
                f"tensor {name!r} does not begin with the prefix {prefix!r}"
            )
        return name.removeprefix(prefix)
    fitting = [old for old in prefix if name.startswith(old)]
    if not fitting:
        return name
    longest = max(fitting, key=len)
    return prefix[longest] + name.removeprefix(longest)


def fit_names(
    names: Collection[str],
    expected: Collection[str],
    what: str,
    optional: Collection[str] = (),
) -> dict[str, str]:
    """Match the names of a file with those of a module or spec that differ at most by a prefix.

    Args:
        names: The names in the file.
        expected: The names wanted.
        what: How to call the file in a message.
        optional: Names among them that may be missing.

    Returns:
        Wanted name → name in the file.  A ``num_batches_tracked`` that only one side has is left out: files from
        before torch 0.4.1 lack them.

    Raises:
        StateDictError: No single prefix, added or removed, makes them the same.
    """
    have = [name for name in names if not is_counter(name)]
    want = {name for name in expected if not is_counter(name)}
    for removed, added in _candidates(have, want):
        renamed = {added + name.removeprefix(removed): name for name in names}
        counted = {name for name in renamed if not is_counter(name)}
        # Two names that became one would lose a tensor.
        fits = want.difference(optional) <= counted <= want
        if fits and len(renamed) == len(names):
            return {n: renamed[n] for n in expected if n in renamed}
    missing = sorted(want - set(have) - set(optional))
    extra = sorted(set(have) - want)
    wrong = f"has the unexpected {extra[0]!r}" if extra else ""
    if missing:
        wrong = f"lacks {missing[0]!r}"
    raise StateDictError(
        f"{what} does not fit the model: it {wrong} ({len(missing)} missing, {len(extra)} unexpected); is it the same "
        "architecture? prefixes can be changed with prefix=... (--prefix)"
    )


def is_counter(name: str) -> bool:
    """Whether this is the batch counter of a normalisation layer."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _candidates(have: list[str], want: set[str]) -> list[tuple[str, str]]:
    """Prefixes to remove and to add that would make the first name fit."""
    pairs = [("", "")]
    if have:
        first = have[0]
        pairs += [
            (first.removesuffix(name), "")
            for name in want
            if first.endswith("." + name)
        ]
        pairs += [
            ("", name.removesuffix(first))
            for name in want
            if name.endswith("." + first)
        ]
    return pairs
