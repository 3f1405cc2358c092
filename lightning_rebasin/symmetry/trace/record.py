"""Run a model once and write down every ATen operation.

The model runs eagerly, in eval mode, under the dispatch mode of :mod:`~lightning_rebasin.symmetry.trace.mode`,
whatever Python code calls the operations.  The run leaves no trace in the model: training mode, parameters, buffers,
random state and gradients are as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.run.copy import private_copy
from lightning_rebasin.symmetry.run.examples import Example, output_tensors
from lightning_rebasin.symmetry.run.lightning import call, silence
from lightning_rebasin.symmetry.trace.mode import Recorder
from lightning_rebasin.symmetry.trace.tape import Tape


def record(module: nn.Module, example: Example) -> Tape:
    """Run an example in eval mode and write down what the module computes.

    Args:
        module: Any module; it is left as it was.
        example: The inputs; a step other than ``forward`` runs on a copy.

    Returns:
        The tape; its results are the output tensors.

    Raises:
        TraceError: The model does not run on this input, or returns no tensor.
    """
    logged: dict[str, Any] = {}
    # A step logs and feeds metrics, which would change the caller's module.
    if example.method != "forward":
        module, original = private_copy(module), module
        logged = silence(module, original)
    leaves = tree_flatten((example.args, dict(example.kwargs)))[0]
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    recorder = Recorder(known_tensors(module), _constants(module, inputs))
    for leaf in inputs:
        recorder.add_input(leaf)
    try:
        with (
            _undisturbed(module),
            plain_kernels(),
            _module_paths(module, recorder.module_path),
            recorder,
        ):
            output = call(module, example, logged)
    except Exception as error:
        shapes = ", ".join(map(_describe, leaves)) or "no inputs"
        raise TraceError(
            f"{type(module).__name__} does not run on the example input ({shapes}): "
            f"{type(error).__name__}: {error}; pass the inputs that {example.method}() expects"
        ) from error
    finally:
        # Also after a failure: an in-place operation may have changed a buffer by then.
        with torch.no_grad():
            for tensor, copy in recorder.saved:
                tensor.copy_(copy)
    results = list(output_tensors(output).values())
    if not results:
        raise TraceError(
            f"{type(module).__name__} returned no tensor on the example input: its function is unknown"
        )
    return recorder.finish(results)


def _constants(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the model keeps beside its state.

    ``example_input_array`` is an attribute of the module too, but here it is an input.
    """
    given = {id(leaf) for leaf in inputs}
    return [t for t in _model_constants(module) if id(t) not in given]


def known_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict themselves; a tied tensor appears under its first name only."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _model_constants(module: nn.Module) -> list[Tensor]:
    """Non-persistent buffers and tensors kept as attributes."""
    found = list(module.buffers())
    for sub in module.modules():
        found += [v for v in vars(sub).values() if isinstance(v, Tensor)]
    return found


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients; put training flags and random state back."""
    modes = [(sub, sub.training) for sub in module.modules()]
    # Only devices that the model is on: forking the others would start CUDA on all of them.
    devices = sorted(
        {
            t.device.index or 0
            for t in module.state_dict().values()
            if t.device.type == "cuda"
        }
    )
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            # Not ``module.eval()``: a module may override it, and then remember that it was called.
            for sub, _ in modes:
                sub.training = False
            yield
        finally:
            for sub, mode in modes:
                sub.training = mode


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Switch off fused kernels and compilation, so that recurrent nets and transformers arrive decomposed."""
    # only the switches themselves: the context managers of mkldnn and cudnn also set precision flags, which may warn
    fast_path, mkldnn, cudnn = (
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch._C._get_cudnn_enabled(),
    )
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)  # noqa: FBT003 - positional only
    torch._C._set_cudnn_enabled(False)  # noqa: FBT003 - positional only
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(mkldnn)
        torch._C._set_cudnn_enabled(cudnn)


@contextmanager
def _module_paths(module: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep ``path`` the stack of the names of the running submodules."""
    names = {id(sub): name for name, sub in module.named_modules()}

    def enter(sub: nn.Module, _: Any) -> None:
        # A module made during the forward pass has no name yet.
        path.append(names.get(id(sub), type(sub).__name__))

    def leave(sub: nn.Module, _: Any, __: Any) -> None:
        del sub
        path.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave)
    try:
        with warnings.catch_warnings():
            # a compiled submodule warns that global hooks fire twice, which is harmless here
            warnings.filterwarnings(
                "ignore", message=".*when there are global hooks on modules"
            )
            yield
    finally:
        before.remove()
        after.remove()


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return (
            f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        )
    return type(value).__name__
