"""Points between sets of weights.

Two networks that were aligned first can be mixed tensor by tensor: ``(1 − λ)·a + λ·b``.  The rules for what is not a
plain floating-point tensor are kept here, in one place:

* At λ = 0 and λ = 1 the ends come back bitwise (no ``0 · inf``, no ``−0 + 0``), and mixing a tensor with itself gives
  it back.
* Half-precision tensors are mixed in float32 and rounded once.  Where the two dtypes differ, the wider one wins.
* Integer and boolean buffers (``num_batches_tracked``, masks, index tables) have no midpoint.  They are taken from the
  nearer end, the first one in a tie.
* Names that share storage in *every* input (tied weights) share storage in the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_rebasin.errors import ConfigurationError, StateDictError

#: Elements summed in float64 at a time: the temporary copies stay small, whatever the size of the tensor.
_CHUNK = 1 << 18


def interpolate(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], lam: float
) -> dict[str, Tensor]:
    """The point ``(1 − λ)·a + λ·b`` on the line through two sets of weights.

    Args:
        a: Weights at λ = 0.
        b: Weights at λ = 1, with the names and shapes of ``a``; any dtype and device.
        lam: λ, usually in [0, 1].  Values outside extrapolate along the same line, which is what a loss curve past its
            ends needs.

    Returns:
        A new dict in the order of ``a``, on the devices of ``a``, sharing no storage with the inputs.

    Raises:
        StateDictError: A tensor is missing, extra, or of another shape or kind in ``b``.
        ConfigurationError: λ is NaN or infinite.

    Example:
        >>> a, b = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([2.0, 5.0])}
        >>> interpolate(a, b, 0.25)["w"].tolist()
        [0.5, 2.0]
    """
    lam = float(lam)
    if not math.isfinite(lam):
        raise ConfigurationError(f"lam must be a finite number, got {lam}")
    check_alike(
        (a, b), ("the first set of weights", "the second set of weights")
    )

    def mix(tensors: Sequence[Tensor]) -> Tensor:
        first, second = tensors
        second = second.to(first.device)
        dtype = torch.promote_types(first.dtype, second.dtype)
        if lam in (0.0, 1.0) or not _mixable(first):
            return (second if lam > 0.5 else first).to(dtype).clone()
        wide = _accumulator(dtype)
        return torch.lerp(first.to(wide), second.to(wide), lam).to(dtype)

    return _tensorwise((a, b), mix)


def average(
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """The weighted mean ``Σ_i w_i·θ_i / Σ_i w_i`` of several sets of weights.

    One tensor is summed at a time, in float64, so that memory stays at one set of weights (the result) when the inputs
    are memory-mapped files.  Models of weight 0 are not looked at; with a single model left, its tensors come back
    bitwise.  Integer buffers come from the model of the largest weight, the first one in a tie.

    Args:
        states: Sets of weights with the same names and shapes.
        weights: One non-negative number per set; all equal if omitted.

    Returns:
        A new dict in the order of the first set, on its devices.

    Raises:
        StateDictError: A tensor is missing, extra, or of another shape or kind in one of the sets.
        ConfigurationError: No sets, a wrong number of weights, or weights that are negative or all zero.

    Example:
        >>> average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}], weights=[2, 1])["w"].tolist()
        [2.0]
    """
    shares = normalised_weights(len(states), weights)
    check_alike(states, tuple(f"model {i + 1}" for i in range(len(states))))
    mean = _Mean(shares)
    return _tensorwise(states, mean.of)


def mixed(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """What :func:`average` makes of one tensor of each set.

    Args:
        tensors: Tensors of one shape.
        shares: Share of each; they sum to 1.

    Example:
        >>> mixed([torch.tensor([1.0]), torch.tensor([4.0])], [0.75, 0.25]).tolist()
        [1.75]
    """
    return _Mean(shares).of(tensors)


class _Mean:
    """The weighted mean of tensors, in double precision."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._chosen = [i for i, share in enumerate(shares) if share > 0]
        self._largest = max(self._chosen, key=lambda i: shares[i])

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The mean, in the widest of the dtypes, on the device of the first tensor."""
        first = tensors[0]
        dtype = first.dtype
        for tensor in tensors:
            dtype = torch.promote_types(dtype, tensor.dtype)
        if not _mixable(first) or len(self._chosen) == 1:
            return tensors[self._largest].to(first.device, dtype).clone()
        wide = torch.complex128 if dtype.is_complex else torch.float64
        if first.layout != torch.strided:
            return self._wide(tensors, wide).to(dtype)
        result = torch.empty(first.shape, dtype=dtype, device=first.device)
        chunks = [
            torch.split(t.reshape(-1), _CHUNK) for t in (result, *tensors)
        ]
        for piece, *parts in zip(*chunks, strict=True):
            here = [part.to(first.device) for part in parts]
            piece.copy_(self._wide(here, wide))
        return result

    def _wide(self, tensors: Sequence[Tensor], wide: torch.dtype) -> Tensor:
        first, *others = self._chosen
        origin = tensors[first].to(wide)
        total = torch.zeros_like(origin)
        # Around the first model, so that equal models give exactly themselves.
        for i in others:
            difference = tensors[i].to(origin.device, wide).sub(origin)
            total.add_(difference, alpha=self._shares[i])
        return total.add_(origin)


def normalised_weights(
    count: int, weights: Sequence[float] | None
) -> tuple[float, ...]:
    """Weights divided by their sum; equal ones for ``None``.

    Raises:
        ConfigurationError: No models, a wrong number of weights, or weights that are negative or all zero.
    """
    if count == 0:
        raise ConfigurationError(
            "there is nothing to average: no sets of weights given"
        )
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(values) != count:
        raise ConfigurationError(
            f"{len(values)} weights for {count} models; give one weight (share) per model"
        )
    if (
        not all(math.isfinite(w) and w >= 0 for w in values)
        or sum(values) == 0
    ):
        raise ConfigurationError(
            f"weights must be finite, not negative and not all zero, got {values}"
        )
    return tuple(w / sum(values) for w in values)


def check_alike(
    states: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> None:
    """Raise unless all sets of weights have the same names, shapes and kinds of tensor as the first.

    Args:
        states: The sets of weights.
        names: How to call each of them in a message.

    Raises:
        StateDictError: Something differs; the message names the tensor and the set.
    """
    first = states[0]
    for state, name in zip(states[1:], names[1:], strict=True):
        _check_names(first, state, names[0], name)
        for key, tensor in first.items():
            _check_tensor(key, tensor, state[key], names[0], name)


def _check_names(
    first: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    first_name: str,
    name: str,
) -> None:
    missing = [key for key in first if key not in state]
    extra = [key for key in state if key not in first]
    if not (missing or extra):
        return
    culprit = f"has the unexpected {extra[0]!r}" if extra else ""
    if missing:
        culprit = f"lacks {missing[0]!r}"
    count = len(missing) + len(extra)
    more = f" ({count} names differ in all)" if count > 1 else ""
    raise StateDictError(
        f"{name} {culprit}, compared with {first_name}{more}; is it the same architecture?"
    )


def _check_tensor(
    key: str, first: Tensor, other: Tensor, first_name: str, name: str
) -> None:
    if first.shape != other.shape:
        raise StateDictError(
            f"{name}: tensor {key!r} has shape {tuple(other.shape)}, {first_name} has {tuple(first.shape)}"
        )
    if _mixable(first) != _mixable(other) or first.layout != other.layout:
        raise StateDictError(
            f"{name}: tensor {key!r} is {other.dtype}, {other.layout}; in {first_name} it is {first.dtype}, "
            f"{first.layout}; they cannot be mixed"
        )


def _mixable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, the dtype itself otherwise."""
    if dtype.is_complex:
        return torch.promote_types(dtype, torch.complex64)
    return dtype if dtype == torch.float64 else torch.float32


def _tensorwise(
    states: Sequence[Mapping[str, Tensor]],
    mix: Callable[[Sequence[Tensor]], Tensor],
) -> dict[str, Tensor]:
    """Apply ``mix`` to every name once per distinct storage, so that tied weights stay tied."""
    # The inputs are kept with each result: a lazy mapping may make tensors on the fly, and a freed one's address is
    # soon another's.
    done: dict[tuple[object, ...], tuple[Tensor, list[Tensor]]] = {}
    result = {}
    with torch.no_grad():
        for name in states[0]:
            tensors = [state[name].detach() for state in states]
            key = (
                tuple(_identity(tensor) for tensor in tensors)
                if tensors[0].numel()
                else (name,)
            )
            if key not in done:
                done[key] = (mix(tensors), tensors)
            result[name] = done[key][0]
    return result


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """The same for two names of one tensor: same memory, seen in the same way."""
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return (
        str(tensor.device),
        tensor.data_ptr(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
    )
