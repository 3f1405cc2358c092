"""``geodesic_path``: a chain of networks whose outputs change as little as possible from one end to the other.

The chain θ_0, …, θ_K minimises the sum of Jensen–Shannon divergences of consecutive outputs,

    E(θ_1, …, θ_{K−1}) = Σ_k mean_x JS(p(·|x, θ_k), p(·|x, θ_{k+1})),

on unlabelled inputs, with both ends fixed.  Up to a factor this is the energy of a discrete curve in the geometry of
Fisher and Rao, so that the minimum is a shortest way among distributions, walked at even speed (Cauchy–Schwarz:
``(Σ√JS)² ≤ K·Σ JS``, with equality for equal steps).

Idea: Tan, Long, Zhao, Laine, "Geodesic Mode Connectivity", ICLR 2023 Tiny Papers (arXiv 2308.12666; only the abstract
was read, so that schedule and sizes here are our own).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
)
from lightning_rebasin.landscape.batches import clone_batch, on_device
from lightning_rebasin.landscape.copies import copy_module, isolated_rng
from lightning_rebasin.landscape.divergence import (
    OutputFunction,
    forward,
    jensen_shannon,
    log_probabilities,
)
from lightning_rebasin.landscape.geodesic_values import Geodesic
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.paths.polygon import Polygon
from lightning_rebasin.landscape.points import State, WeightPath
from lightning_rebasin.landscape.weights import (
    Moves,
    check_states,
    first_names,
    trainable_names,
    weights_of,
)
from lightning_rebasin.merging.statistics import averaging, batch_norms


def geodesic_path(
    module: nn.Module,
    a: State,
    b: State,
    dataloader: Iterable[Any],
    *,
    pieces: int = 10,
    steps: int = 500,
    lr: float = 1e-3,
    permutation: Moves | None = None,
    start: WeightPath | None = None,
    output: OutputFunction = forward,
    seed: int = 0,
    progress: bool = False,
) -> Geodesic:
    """Find a chain of networks between two whose outputs change least.

    All networks of the chain are trained together by Adam on the sum of divergences; the learning rate is constant for
    half of the steps and then falls linearly to 1 %.  The module runs in eval mode, with batch norms on the statistics
    of the batch.  Frozen parameters and buffers stay on the start: re-estimate batch-norm statistics where the chain is
    measured (``batch_norm=``).

    Args:
        module: Any classifier; it is copied and left alone.
        a: Weights of the first end.
        b: Weights of the last end.
        dataloader: Batches, gone through as often as needed; labels are not looked at.
        pieces: Number of straight pieces: ``pieces − 1`` networks are trained, and each costs a forward and backward
            pass per step, and three times its parameters of memory.
        steps: Steps of Adam.
        lr: Learning rate; a tenth of the default for a matched start, which the first steps would throw off.
        permutation: Applied to ``b`` first: the matched start.
        start: Another path to start on than the segment; its ends are the ends.
        output: ``output(module, batch)`` returning logits, classes along the second axis.
        seed: Seeds the order of the batches and whatever the module draws.
        progress: Show a progress bar over the steps.

    Returns:
        The chain: measure it with :func:`~lightning_rebasin.measure_path`, its outputs with
        :func:`~lightning_rebasin.geodesic_length`.

    Raises:
        ConfigurationError: Fewer than two pieces, no steps, nothing to train, or outputs that are not logits.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.
        NonFiniteError: The energy is not finite.

    Example:
        >>> net = nn.Linear(1, 2, bias=False)
        >>> a, b = {"weight": torch.zeros(2, 1)}, {"weight": torch.tensor([[-1.0], [3.0]])}
        >>> found = geodesic_path(net, a, b, [torch.ones(1, 1)], pieces=2, steps=20, lr=0.05)
        >>> found.energies[-1] < found.energies[0]
        True
    """
    if pieces < 2 or steps < 1:
        raise ConfigurationError(
            f"pieces={pieces}, steps={steps}: a geodesic needs two pieces or more, and a step"
        )
    first, last = check_states(module, [a, b])
    if permutation is not None:
        first, last = check_states(module, [first, permutation.apply(last)])
    route = Line(first, last) if start is None else start
    # Steps take place whatever mode the caller is in, and leave no trace in the global generators.
    with torch.inference_mode(mode=False), torch.enable_grad():
        places = [k / pieces for k in range(pieces + 1)]
        states = [route.at(t).state() for t in places]
        chain = _Chain(module, states, output)
        with isolated_rng(), averaging(chain.norms):
            torch.manual_seed(seed)
            batches = islice(_again(dataloader), steps)
            bar = tqdm(
                batches,
                desc="geodesic",
                total=steps,
                disable=not progress,
                leave=False,
            )
            energies = _descend(chain, bar, lr, steps)
    return Geodesic(Polygon(chain.states()), energies)


def _descend(
    chain: _Chain, batches: Iterable[Any], lr: float, steps: int
) -> tuple[float, ...]:
    """Adam on the energy, one step a batch; the energies that it met."""
    optimizer, schedule = _optimizer(chain.trained, lr, steps)
    energies: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        energy = chain.energy(batch)
        energies.append(_finite(energy, len(energies)))
        torch.autograd.backward(energy)
        optimizer.step()
        schedule.step()
    return tuple(energies)


class _Chain:
    """The networks between two ends, as parameters of one copy of the module.

    Args:
        module: The module; it is copied.
        states: All weights along the chain, the ends included; tensors of our own.
        output: Gives the logits.
    """

    def __init__(
        self,
        module: nn.Module,
        states: Sequence[State],
        output: OutputFunction,
    ) -> None:
        copy = copy_module(module)
        self._runner = _Runner(copy, output)
        self._norms = batch_norms(copy)
        self._device = next(iter(weights_of(module).values())).device
        names = trainable_names(module)
        if not names:
            raise ConfigurationError(
                "every parameter is frozen: there is nothing to train"
            )
        # Tied weights under their first names only: torch ties the others.
        self._first = first_names(module)
        self._run = {n for n, first in self._first.items() if n == first}
        # The copy's own statistics are updated by every pass, and looked at by none.
        for norm, child in self._norms.items():
            self._run -= {f"{norm}.{key}" for key, _ in child.named_buffers()}
        self._states = []
        for state in states:
            here = {n: t.to(self._device) for n, t in state.items()}
            self._states.append(here)
        self._own: list[dict[str, Tensor]] = []
        for state in self._states[1:-1]:
            own = {n: state[n].clone().requires_grad_() for n in names}
            self._own.append(own)

    @property
    def norms(self) -> Iterable[_BatchNorm]:
        """The batch norms, which run on the statistics of each batch."""
        return self._norms.values()

    @property
    def trained(self) -> list[Tensor]:
        """Everything that is optimised."""
        return [tensor for own in self._own for tensor in own.values()]

    def energy(self, batch: Any) -> Tensor:
        """The sum of divergences of consecutive outputs."""
        # Cloned: tensors made in inference mode could not be saved for the backward pass.
        batch = clone_batch(on_device(batch, self._device))
        with torch.no_grad():
            before = self._outputs(self._states[0], batch)
            last = self._outputs(self._states[-1], batch)
        terms = []
        for own, state in zip(self._own, self._states[1:-1], strict=True):
            here = self._outputs({**state, **own}, batch)
            terms.append(jensen_shannon(before, here))
            before = here
        terms.append(jensen_shannon(before, last))
        return torch.stack(terms).sum()

    def states(self) -> tuple[State, ...]:
        """The weights along the chain, the ends as they were."""
        found: list[State] = [self._states[0]]
        for own, state in zip(self._own, self._states[1:-1], strict=True):
            new = {}
            for name, tensor in state.items():
                trained = own.get(self._first[name])
                new[name] = tensor if trained is None else trained.detach()
            found.append(new)
        return (*found, self._states[-1])

    def _outputs(self, state: State, batch: Any) -> Tensor:
        weights = {f"module.{name}": state[name] for name in self._run}
        result = functional_call(self._runner, weights, (batch,))
        return log_probabilities(result)


class _Runner(nn.Module):
    """Makes the output function a ``forward``, whose weights can be replaced."""

    def __init__(self, module: nn.Module, output: OutputFunction) -> None:
        super().__init__()
        self.module = module
        self._output = output

    def forward(self, batch: Any) -> Tensor:
        """The logits."""
        return self._output(self.module, batch)


def _optimizer(
    trained: Sequence[Tensor], lr: float, steps: int
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
    """Adam, at a constant rate for half of the steps, which then falls linearly to 1 %."""
    optimizer = torch.optim.Adam(trained, lr=lr)

    def share(step: int) -> float:
        return max(0.01, min(1.0, 2.0 * (1.0 - step / steps)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _again(dataloader: Iterable[Any]) -> Iterator[Any]:
    """The batches over and over.

    Raises:
        DataError: There is none.
    """
    while True:
        empty = True
        for batch in dataloader:
            empty = False
            yield batch
        if empty:
            raise DataError(
                "the data loader gave no batch, or cannot be gone through twice"
            )


def _finite(energy: Tensor, step: int) -> float:
    value = float(energy.detach())
    if not torch.isfinite(energy.detach()):
        raise NonFiniteError(
            f"the energy is {value} at step {step}: lower lr, or look for infinite logits"
        )
    return value
