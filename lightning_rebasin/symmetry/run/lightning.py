"""Running a network on an example: its ``forward``, or a step of a LightningModule on a whole batch.

Many LightningModules have no ``forward`` that takes what the data loader gives: what they compute is written in
``validation_step``.  Such a step also logs, looks at its trainer and feeds metrics, so it runs on a private copy in
which all that leads nowhere.  What counts as its output is what it returns or, if that is nothing, what it logs.
Lightning is not imported: its modules are known by their methods.

All stand-ins for Lightning's objects are here, for every part of the package that runs a step away from its trainer;
what has to import Lightning is in ``landscape/lightning_probe.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from lightning_rebasin.errors import TraceError
from lightning_rebasin.symmetry.run.examples import Example, output_tensors

#: Steps that compute something from a batch, the preferred one first.
STEPS = ("validation_step", "training_step")
_FRAMEWORKS = ("lightning.", "lightning_fabric.", "pytorch_lightning.")


@final
class Silent:
    """Stands in for a trainer or logger: has every attribute, takes every call, does nothing."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Take any call."""
        return self

    def __getitem__(self, _key: Any) -> Any:
        return self

    def __bool__(self) -> bool:
        return False


@final
class LogSink:
    """Where redirected log calls go: to ``target`` if there is one.

    A deep copy of a module logs nowhere and does not drag the target, usually another module's method, along.
    """

    def __init__(self) -> None:
        self.target: Callable[..., None] | None = None

    def __deepcopy__(self, memo: object) -> LogSink:
        return LogSink()

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Stand in for ``LightningModule.log``."""
        if self.target is not None:
            self.target(name, value, *args, **kwargs)

    def log_dict(
        self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Stand in for ``LightningModule.log_dict``."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)


def is_lightning(module: nn.Module) -> bool:
    """Whether a module has the methods of a LightningModule."""
    return all(
        callable(getattr(type(module), name, None))
        for name in ("validation_step", "log", "log_dict")
    )


def silence(module: nn.Module, original: nn.Module) -> dict[str, Any]:
    """Make a copy's steps runnable without a trainer, and harmless.

    Args:
        module: A private copy; every LightningModule in it is changed.
        original: What it was copied from; its trainer, if it has one, may be read (epoch, data module).

    Returns:
        A dict that collects what the copy logs.
    """
    logged: dict[str, Any] = {}
    trainer = vars(original).get("_trainer") or Silent(
        global_step=0,
        current_epoch=0,
        world_size=1,
        global_rank=0,
        is_global_zero=True,
        num_val_batches=[1],
    )
    for part in module.modules():
        if is_lightning(part):
            _redirect(part, logged, trainer)
    return logged


def replace_methods(part: nn.Module, replaced: Mapping[str, Any]) -> None:
    """Give one module other methods and properties than its class has.

    Args:
        part: A copy; its class becomes a subclass of its own.
        replaced: Functions and properties by name.
    """
    cls = type(part)
    # ``trainer`` and ``logger`` are properties, so only a subclass can replace them; the name is kept for the eyes of
    # code that looks at it.
    own = {"__module__": cls.__module__, **replaced}
    part.__class__ = type(cls.__name__, (cls,), own)


def call(module: nn.Module, example: Example, logged: dict[str, Any]) -> Any:
    """Run one example.

    Args:
        module: The network; for a step a silenced copy.
        example: What to run, on what.
        logged: What :func:`silence` returned; overwritten.

    Returns:
        The output; of a step that returns no tensor, what it logged.

    Raises:
        TraceError: The module has no such method.
    """
    if example.method == "forward":
        return module(*example.args, **example.kwargs)
    step = getattr(module, example.method, None)
    if not callable(step):
        raise TraceError(
            f"{type(module).__name__} has no method {example.method!r}"
        )
    for part in module.modules():
        # Metrics add up what they see, so the second run would not log what the first did.
        if all(
            callable(getattr(part, name, None))
            for name in ("update", "compute", "reset")
        ):
            part.reset()  # type: ignore[operator]
    logged.clear()
    output = step(*_with_indices(step, example), **example.kwargs)
    return output if output_tensors(output) else dict(logged)


def few(batch: Any, count: int) -> Any:
    """The first samples of a batch: every tensor in it as long as the first one is cut."""
    tensors = [
        leaf
        for leaf in tree_flatten(batch)[0]
        if isinstance(leaf, Tensor) and leaf.ndim
    ]
    size = len(tensors[0]) if tensors else 0
    return tree_map_only(
        Tensor, lambda t: t[:count] if t.ndim and len(t) == size else t, batch
    )


def has_own_method(module: object, name: str) -> bool:
    """Whether a method was written for this (data) module, and not inherited as a placeholder."""
    method = getattr(type(module), name, None)
    return callable(method) and not str(
        getattr(method, "__module__", "")
    ).startswith(_FRAMEWORKS)


def _with_indices(
    step: Callable[..., Any], example: Example
) -> tuple[Any, ...]:
    """Positional arguments, with 0 for the indices of batch and loader if the step asks for them."""
    signature = inspect.signature(step)
    given = signature.bind_partial(*example.args, **example.kwargs).arguments
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    parameters = signature.parameters.values()
    missing = [
        p
        for p in parameters
        if p.kind in positional
        and p.default is p.empty
        and p.name not in given
    ]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return (
        *example.args,
        *(0 for _ in missing),
        *((0,) if takes_any and len(example.args) == 1 else ()),
    )


def _redirect(part: nn.Module, logged: dict[str, Any], trainer: Any) -> None:
    """Send what a LightningModule logs to ``logged``; what it prints or plots goes nowhere."""

    def log(
        _self: Any, name: str, value: Any, *_args: Any, **_kwargs: Any
    ) -> None:
        logged[name] = _as_tensors(value)

    def log_dict(
        _self: Any, dictionary: Mapping[str, Any], *_args: Any, **_kwargs: Any
    ) -> None:
        logged.update(
            {name: _as_tensors(value) for name, value in dictionary.items()}
        )

    def quiet(_self: Any, *_args: Any, **_kwargs: Any) -> None:
        """Print nothing."""

    def alone(_self: Any, data: Any, *_args: Any, **_kwargs: Any) -> Any:
        return data

    logger = Silent()
    replaced: dict[str, Any] = {
        "log": log,
        "log_dict": log_dict,
        "print": quiet,
        "all_gather": alone,
        "trainer": property(lambda _self: trainer),
        "logger": property(lambda _self: logger),
        "loggers": property(lambda _self: [logger]),
    }
    for name in ("log", "log_dict"):  # redirected already, on the instance
        vars(part).pop(name, None)
    replace_methods(part, replaced)


def _as_tensors(value: Any) -> Any:
    """What a logged value says: a tensor, a number, or a metric asked for its result."""
    if isinstance(value, Tensor):
        return value
    if callable(getattr(value, "compute", None)):
        return value.compute()
    return (
        torch.tensor(float(value)) if isinstance(value, int | float) else value
    )
