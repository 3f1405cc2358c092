"""A private double-precision copy of a model that can be run with other weights.

Whatever is done here leaves the caller's model alone: its mode, hooks, buffers, random state and weights.  Weights are
permuted in the copy's own memory, tensor by tensor, and put back the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.proof.precision import (
    WIDE,
    ExactMode,
    widen,
    widen_while_running,
)
from lightning_rebasin.symmetry.run.copy import (
    private_copy,
    tensor_state,
    unwrap,
)
from lightning_rebasin.symmetry.run.examples import Example, output_tensors
from lightning_rebasin.symmetry.run.hollow import is_hollow
from lightning_rebasin.symmetry.run.lightning import call, silence
from lightning_rebasin.symmetry.spec.gauge import has_gauge

#: Bytes of parameters from which a model counts as large.
LARGE = 384 * 2**20


@final
class Sandbox:
    """A copy of a module that computes in float64, to be run with any weights.

    The weights of a large model stay in their own precision, and only what a running submodule needs is in float64.

    Args:
        module: The model; it is unwrapped, copied and never touched again.
        share: Use the memory of the model's parameters if it is large: it must be the caller's private copy, and has
            other weights until :meth:`close`.
        narrow: Whether weights stay in their own precision; by default those of a large model.

    Raises:
        TraceError: The module cannot be copied, or is on a device without values.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        share: bool = False,
        narrow: bool | None = None,
    ) -> None:
        #: Whether the weights stay in their own precision.
        large = weighs(module) >= LARGE
        self.narrow = large if narrow is None else narrow
        self.module = private_copy(module, share=share and self.narrow)
        self._logged = silence(self.module, unwrap(module))
        tensors = [*self.module.parameters(), *self.module.buffers()]
        hollow = any(map(is_hollow, self.module.parameters()))
        if hollow or any(t.is_meta or is_lazy(t) for t in tensors):
            raise TraceError(
                "the module has tensors without values (meta device, hollow or lazy layers): initialise it first"
            )
        device = tensors[0].device if tensors else torch.device("cpu")
        # MPS has no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self._widen()
        self._live = tensor_state(self.module, keep_vars=True)
        self._parameters = {id(p) for p in self.module.parameters()}
        _separate(self._live.values())
        #: The weights of the copy: float64, or the model's own precision if it is large.
        self.state: dict[str, Tensor] = {}
        for name, value in self._live.items():
            self.state[name] = value.detach()
        self._constant: list[tuple[Tensor, Tensor]] = []
        #: Whether some operation rounded to less than float64 in spite of all.
        self.rounded = False

    def _widen(self) -> None:
        """Make the copy compute in float64, tensors that are plain attributes included."""
        if self.narrow:
            widen_while_running(self.module)
        else:
            self.module._apply(lambda t: widen(t.to(self.device)))  # type: ignore[no-untyped-call]
        for part in self.module.modules():
            for name, value in list(vars(part).items()):
                if type(value) is Tensor and value.dtype in WIDE:
                    vars(part)[name] = widen(value.detach()).to(self.device)

    def run(
        self, example: Example, state: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """One forward pass in eval mode under a fixed seed.

        Args:
            example: The input.
            state: Weights to run with; the copy's own by default.

        Returns:
            The output tensors by path.

        Raises:
            TraceError: The forward pass failed.
        """
        outputs = self._outputs(
            example, self.state if state is None else state
        )
        return {path: tensor.detach() for path, tensor in outputs.items()}

    def gradients(
        self, example: Example, sum_of: Callable[[dict[str, Tensor]], Tensor]
    ) -> dict[str, Tensor]:
        """How a number that is made of the outputs depends on every tensor of the state, to first order.

        Args:
            example: The input.
            sum_of: Makes the number.

        Returns:
            The gradients by name; tensors that the number does not depend on, as far as autograd can see, are left out.

        Raises:
            TraceError: The forward pass failed.
            RuntimeError: Autograd cannot go through the network.
        """
        leaves = {n: t for n, t in self._live.items() if t.is_floating_point()}
        frozen = [t for t in leaves.values() if not t.requires_grad]
        for leaf in frozen:
            leaf.requires_grad_()
        try:
            outputs = self._outputs(example, self.state, torch.enable_grad())
            number = sum_of(outputs)
            found = torch.autograd.grad(
                number, list(leaves.values()), allow_unused=True
            )
        finally:
            for leaf in frozen:
                leaf.requires_grad = False
        return {
            name: gradient
            for name, gradient in zip(leaves, found, strict=True)
            if gradient is not None
        }

    def _outputs(
        self,
        example: Example,
        state: Mapping[str, Tensor],
        inner: AbstractContextManager[Any] | None = None,
    ) -> dict[str, Tensor]:
        """One forward pass with some weights, inside one more context."""
        own = tree_map_only(
            Tensor, self._own, (example.args, dict(example.kwargs))
        )
        args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", own)
        mode = ExactMode(narrow=self.narrow)
        # Caches in non-persistent buffers must not leak from one run into the next.
        persistent = {id(value) for value in self._live.values()}
        caches = [
            (b, b.detach().clone())
            for b in self.module.buffers()
            if id(b) not in persistent
        ]
        self._assign(state)
        try:
            with _isolated(self.device), mode, inner or nullcontext():
                output = call(
                    self.module,
                    Example(args, kwargs, example.method),
                    self._logged,
                )
        except Exception as error:  # whatever the user's code raises
            raise TraceError(
                f"{example.method} of {type(self.module).__name__} failed on the example input: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            for buffer, value in caches:
                buffer.data = value
            self._assign(self.state)
        self.rounded |= mode.rounded
        return output_tensors(output)

    def changed(
        self, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``state`` with some tensors replaced, under every name that the model ties to them."""
        pointers = {
            self.state[name].data_ptr(): tensor
            for name, tensor in tensors.items()
        }
        tied = {
            name: pointers[own.data_ptr()]
            for name, own in self.state.items()
            if own.data_ptr() in pointers
            and own.shape == pointers[own.data_ptr()].shape
            and own.numel()
        }
        return {**state, **tied, **tensors}

    @contextmanager
    def transformed(self, transform: Transform) -> Iterator[None]:
        """Other weights inside the context, tensor by tensor in their own memory."""
        kept = (
            {}
            if transform.exact
            else {n: t.clone() for n, t in self._own_tensors().items()}
        )
        self._transform(transform)
        try:
            yield
        finally:
            if transform.exact:
                self._transform(transform.inverse())
            # What rounds when it is undone is put back from a copy.
            for name, tensor in kept.items():
                self.state[name].copy_(tensor)

    def disturb(self, name: str, noise: Tensor) -> None:
        """Add noise to a tensor whose values are all equal, under every name that it has."""
        tensor = self.state[name]
        self._constant.append((tensor, tensor.flatten()[0].clone()))
        tensor.add_(noise)

    def close(self) -> None:
        """Give shared memory back as it was."""
        for tensor, value in self._constant:
            tensor.fill_(value)

    def _transform(self, transform: Transform) -> None:
        if has_gauge(transform.spec):
            # Gains go into other tensors, so that all of them are needed at once.
            changed = transform.apply(self.state)
            for name, tensor in self._own_tensors().items():
                tensor.copy_(changed[name])
            return
        for name, tensor in self._own_tensors().items():
            if transform.spec.aliases.get(name, name) in transform.spec.maps:
                tensor.copy_(transform.apply_to(name, tensor))

    def _own_tensors(self) -> dict[str, Tensor]:
        """Every tensor once.  Of several names the last one counts, as it does when a state dict is loaded."""
        last = {
            tensor.data_ptr(): name
            for name, tensor in self.state.items()
            if tensor.numel()
        }
        return {name: self.state[name] for name in last.values()}

    def _own(self, tensor: Tensor) -> Tensor:
        with torch.inference_mode(mode=False):
            return widen(tensor.detach().to("cpu")).to(self.device, copy=True)

    def _assign(self, state: Mapping[str, Tensor]) -> None:
        for name, live in self._live.items():
            value = state[name]
            # Swapping storage costs nothing; buffers are cloned because a forward pass may write to them.
            live.data = (
                value if id(live) in self._parameters else value.clone()
            )


def weighs(module: nn.Module) -> int:
    """Bytes of a model's parameters; on MPS, which has no float64 to widen a part of them to, none count."""
    given = [p for p in unwrap(module).parameters() if not is_lazy(p)]
    if any(parameter.device.type == "mps" for parameter in given):
        return 0
    return sum(parameter.nbytes for parameter in given)


def _separate(tensors: Iterable[Tensor]) -> None:
    """Give memory of their own to different tensors that share some, so that they can be permuted one by one."""
    owners: dict[int, int] = {}
    for tensor in tensors:
        if tensor.numel() and owners.setdefault(
            tensor.untyped_storage().data_ptr(), id(tensor)
        ) != id(tensor):
            tensor.data = tensor.data.clone()


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """No gradients, a fixed seed in every generator, float64 as default; all restored afterwards."""
    devices = [device] if device.type == "cuda" else []
    default, python, numpy = (
        torch.get_default_dtype(),
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
    )
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
