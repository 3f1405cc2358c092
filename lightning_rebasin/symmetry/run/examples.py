"""What goes into a model and what comes out: example inputs, and the outputs that must not change.

A network's function is judged on example inputs.  Users give them as the arguments of ``forward``; several examples
(other branches, other experts) are a list.  The output may be a tensor, any nesting of containers, or an output object
in the style of Hugging Face, whose caches are not results and whose hidden states are not predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from lightning_rebasin.errors import TraceError

_CACHES = ("past", "cache", "mems")
_INTERNALS = ("hidden_state", "attentions", "model_output", "extract_features")
_PREDICTIONS = ("logits", "loss", "pred_boxes", "prediction", "start_scores")


@dataclass(frozen=True)
class Example:
    """One run of a network: the arguments of ``forward``, or of a step.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        method: What is called.  With ``"validation_step"`` (or another step of a LightningModule) the arguments are a
            batch as the data loader gives it; the indices of batch and loader may be left out.  The output is what the
            step returns or, if that holds no tensor, what it logs.  It runs on a private copy without a trainer.

    Example:
        >>> Example((1, 2)).method, Example(({"x": 1},), method="validation_step").args
        ('forward', ({'x': 1},))
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    method: str = "forward"


def as_example(value: Any) -> Example:
    """Read one example input as users write it.

    Args:
        value: An :class:`Example`; a mapping (keyword arguments); a pair of a tuple and a mapping (both); another tuple
            or list (positional arguments); anything else is the only argument.

    Example:
        >>> as_example({"x": 1}).kwargs, as_example((1, 2)).args, as_example(3).args
        ({'x': 1}, (1, 2), (3,))
    """
    if isinstance(value, Example):
        return value
    if isinstance(value, Mapping):
        return Example((), dict(value))
    if isinstance(value, tuple | list):
        pair = len(value) == 2 and isinstance(value[0], tuple | list)
        if pair and isinstance(value[1], Mapping):
            return Example(tuple(value[0]), dict(value[1]))
        return Example(tuple(value))
    return Example((value,))


def resolve_examples(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    examples: Sequence[Any] | None,
) -> tuple[Example, ...]:
    """Collect the examples of a call: its own arguments, a list, or the module's ``example_input_array``.

    Raises:
        TraceError: There is no example input at all.
    """
    found = _arguments(args, kwargs)
    found += [as_example(value) for value in examples or ()]
    own = getattr(module, "example_input_array", None)
    if not found and own is not None:
        found.append(as_example(own))
    if not found:
        raise TraceError(
            "no example input: pass the arguments of forward, set 'example_input_array' on the LightningModule, or "
            "pass Example((batch,), method='validation_step')"
        )
    return tuple(found)


def _arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Example]:
    """The example that the arguments of a call make; an :class:`Example` alone stands for itself."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Example):
        return [args[0]]
    if args or kwargs:
        return [Example(tuple(args), dict(kwargs))]
    return []


def output_tensors(output: Any) -> dict[str, Tensor]:
    """The tensors of an output that the network is there to compute, by their path.

    Args:
        output: What ``forward`` returned.

    Returns:
        ``{path: tensor}`` in order.  Of a Hugging Face output object the caches are left out, and if it holds
        predictions (logits, a loss, boxes) also its hidden states: those are in the basis of the hidden units.

    Example:
        >>> import torch
        >>> list(output_tensors({"a": torch.zeros(1), "b": [torch.ones(2), None]}))
        ["['a']", "['b'][0]"]
    """
    if _is_output_object(output):
        # A cache holds the past in the basis of the hidden units: it is not a result.
        output = _without_words(output, _CACHES)
        if any(_holds(key, _PREDICTIONS) for key in output):
            output = _without_words(output, _INTERNALS)
    leaves, _ = tree_flatten_with_path(output)
    found = {}
    for path, leaf in cast("list[Any]", leaves):
        if isinstance(leaf, Tensor):
            found[keystr(path)] = leaf
    return found


def _is_output_object(output: Any) -> bool:
    """Whether this is an output in the style of Hugging Face: a mapping that can also be a tuple."""
    if isinstance(output, Tensor) or not isinstance(output, Mapping):
        return False
    return hasattr(output, "to_tuple")


def _without_words(
    output: Mapping[str, Any], words: tuple[str, ...]
) -> dict[str, Any]:
    return {
        key: value for key, value in output.items() if not _holds(key, words)
    }


def _holds(key: str, words: tuple[str, ...]) -> bool:
    return any(word in key for word in words)
