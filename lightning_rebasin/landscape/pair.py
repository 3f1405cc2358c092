"""Two sets of weights at work: matched by how they respond to batches, and judged half way between them.

The batches are what a training loader gives.  How a module runs on one, by ``forward`` or by a step, is what
:func:`~lightning_rebasin.symmetry.trace.batch_example.batch_example` found out.  Everything runs on private copies,
with the global generators given back, and both ends see the same random numbers.

The judge of a matching is the midpoint ``(a + π(b))/2``: the distance of its outputs to the mean of the ends' outputs,
which itself does not depend on π.  Batch norms of the midpoint are estimated anew first.
"""

from __future__ import annotations

import math
from collections.abc import (
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from lightning_rebasin.errors import RebasinError, TraceError
from lightning_rebasin.landscape.batches import clone_batch
from lightning_rebasin.landscape.copies import copy_module, isolated_rng
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.matching.activation import (
    STATISTICS,
    match_by_statistics,
)
from lightning_rebasin.merging.refit.choose import distances
from lightning_rebasin.merging.refit.fitting import Ends
from lightning_rebasin.merging.statistics import (
    averaging,
    batch_norms,
    moved_to,
)
from lightning_rebasin.symmetry import Example, PermutationSpec, Transform
from lightning_rebasin.symmetry.run.lightning import call, silence

State = Mapping[str, Tensor]
#: Ways to match one network to another; the first of equals wins where they compete.
METHODS = ("weight", *STATISTICS)
#: What rivals are called.
Name = TypeVar("Name", bound=str)


class Processes:
    """What several processes tell each other; here there is only one."""

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes; collective."""
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes; collective."""
        return tensor

    def agree(self, error: RebasinError | None) -> None:
        """Raise on every process if one of them failed; collective."""
        if error is not None:
            raise error

    @contextmanager
    def together(self) -> Generator[None]:
        """Fail together: whoever does not fail would wait for the others forever."""
        try:
            yield
        except RebasinError as error:
            self.agree(error)
            raise
        self.agree(None)


@final
class BatchNetwork(nn.Module):
    """A private copy of a module as a function of a batch, with the module's own names of its weights.

    Args:
        module: The module; it is copied and not changed.
        method: What runs on a batch: ``"forward"`` on its first item, or a step on all of it.
        context: Makes the context of one run, such as autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        method: str = "forward",
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.inner = copy_module(module)
        self._logged = silence(self.inner, module)
        self._method = method
        self._context = context

    @override
    def forward(self, batch: Any) -> Any:
        # A step may change its batch.
        batch = tree_map_only(
            Tensor, lambda t: moved_to(self.inner, t), clone_batch(batch)
        )
        if self._method == "forward" and isinstance(batch, Sequence):
            batch = batch[0]
        example = Example((batch,), method=self._method)
        try:
            with isolated_rng(), self._context():
                return call(self.inner, example, self._logged)
        except RebasinError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise TraceError(
                f"{type(self.inner).__name__}.{self._method} does not run on a training batch, which matching by "
                f"activations needs: {type(error).__name__}: {error}; match by weights instead"
            ) from error

    # PyTorch declares three overloads, of which one is enough here.
    @override
    def state_dict(  # type: ignore[override]
        self, *_: Any, **__: Any
    ) -> dict[str, Any]:
        """The weights under the module's names."""
        return weights_of(self.inner)

    @override
    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        assign: bool = False,
    ) -> None:
        """Write weights into the copy; states of metrics are no weights."""
        with torch.no_grad():
            for name, tensor in weights_of(self.inner).items():
                tensor.copy_(state_dict[name])


@final
class Pair:
    """Two sets of weights of one module, ready to run on batches.

    Args:
        module: The architecture; copied twice.
        a: Weights of the end that stays.
        b: Weights of the end that is matched.
        method: See :class:`BatchNetwork`.
        context: See :class:`BatchNetwork`.
        processes: Others that have batches of their own.
    """

    def __init__(
        self,
        module: nn.Module,
        a: State,
        b: State,
        method: str = "forward",
        *,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        processes: Processes | None = None,
    ) -> None:
        self._networks = (
            BatchNetwork(module, method, context),
            BatchNetwork(module, method, context),
        )
        self._states = (a, b)
        self._processes = processes or Processes()

    def match(
        self,
        spec: PermutationSpec,
        batches: Sequence[Any],
        methods: Sequence[str],
    ) -> dict[str, Transform]:
        """Match by activations, once for each method; collective.

        Args:
            spec: What may be permuted, and where units can be seen.
            batches: Batches of this process.
            methods: Of ``"activation"`` and ``"correlation"``; the networks run once for both.

        Raises:
            RebasinError: The matching failed, on every process.
        """
        if not spec.groups:
            return dict.fromkeys(methods, Transform.identity(spec))
        statistics = [STATISTICS[method] for method in methods]
        for network, state in zip(self._networks, self._states, strict=True):
            network.load_state_dict(state)
        agreed = False

        def total(tensor: Tensor) -> Tensor:
            # The first sum comes when this process has run all its batches.
            nonlocal agreed
            if not agreed:
                agreed = True
                self._processes.agree(None)
            return self._processes.total(tensor)

        try:
            found = match_by_statistics(
                spec,
                *self._networks,
                _named(batches),
                statistics,
                total=total,
            )
        except RebasinError as error:
            if not agreed:
                self._processes.agree(error)
            raise
        pairs = zip(methods, statistics, strict=True)
        return {m: found[statistic].transform for m, statistic in pairs}

    def distances(
        self, rivals: Mapping[Name, Transform], batches: Sequence[Any]
    ) -> dict[Name, float]:
        """How far the midpoint's outputs are from the mean of the ends' outputs, for each matching; collective.

        Args:
            rivals: The matchings.
            batches: Batches of this process.

        Raises:
            RebasinError: A network does not run, on every process.
        """
        found: dict[Name, float] = {}
        for name, permutation in rivals.items():
            for other, score in found.items():
                if permutation == rivals[other]:
                    found[name] = score
                    break
            else:
                found[name] = self._distance(permutation, batches)
        return found

    def _distance(
        self, permutation: Transform, batches: Sequence[Any]
    ) -> float:
        """The distance of one midpoint; collective."""
        first, middle = self._networks
        a, b = self._states
        Line(a, permutation.apply(b)).at(0.5).write(weights_of(middle.inner))
        self._reset(middle, batches)
        ends = Ends(first, self._states, (0.5, 0.5))
        with self._processes.together():
            own = distances({"middle": middle}, _named(batches), ends)
        # NCCL reduces nothing that lies on the CPU.
        like = next(iter(a.values()))
        score = torch.tensor(own["middle"], device=like.device)
        return float(self._processes.mean(score))

    def _reset(self, network: BatchNetwork, batches: Sequence[Any]) -> None:
        """Estimate batch norms anew, in place."""
        norms = batch_norms(network)
        if not norms:
            return
        with (
            self._processes.together(),
            averaging(norms.values()),
            torch.no_grad(),
        ):
            for batch in batches:
                network(batch)
        for norm in norms.values():
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                statistic.copy_(self._processes.mean(statistic.clone()))


def closest(scores: Mapping[Name, float]) -> Name:
    """The name with the lowest finite score, the first of equals; the first name if there is none.

    Example:
        >>> closest({"weight": float("nan"), "activation": 0.5, "correlation": 0.5})
        'activation'
    """
    finite = {n: s for n, s in scores.items() if math.isfinite(s)}
    return (
        min(finite, key=finite.__getitem__) if finite else next(iter(scores))
    )


def _named(batches: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Batches as the only argument of :meth:`BatchNetwork.forward`."""
    for batch in batches:
        yield {"batch": batch}
