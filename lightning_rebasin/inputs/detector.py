"""A detector of adversarial inputs: is the input joined to real ones of its class?

A network puts an input into a class.  If it is what it seems, the straight way from real inputs of this class to it
stays low; an adversarial input lies behind a barrier.  The detector holds some real inputs of every class, the
*references*, and looks at the loss on the ways from them.

It finds attacks that do not know it.  An attack that lowers the loss on these ways as well gets through:
``docs/inputs.md`` has the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.inputs.loss import CHUNK_SIZE
from lightning_rebasin.inputs.network import alone
from lightning_rebasin.inputs.pairs import make_pairs
from lightning_rebasin.landscape.barrier import lambda_grid

#: Ridge of the logistic regression on standardised features, and its steps of Newton's method.
_RIDGE = 1e-2
_NEWTON = 50
#: Losses below this one are rounding in single precision.
_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class BarrierDetector:
    """References of every class, and how the loss on the ways from them is read.

    Args:
        references: Real inputs that the network classifies well, shape ``(n, *input)``.
        classes: Their classes, integers of shape ``(n,)``.
        points: How many evenly spaced λ are measured.
        weights: Weights of a logistic regression on the curve, bias last; made by :meth:`fitted`.  Without them the
            score is the highest loss on the way.
        chunk_size: How many inputs go through the network at once.

    Raises:
        DataError: References and classes do not fit.
        ConfigurationError: An option cannot work.

    Example:
        >>> module = nn.Linear(1, 2, bias=False)
        >>> _ = module.weight.data.copy_(torch.tensor([[3.0], [-3.0]]))
        >>> detector = BarrierDetector(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), points=3)
        >>> detector.scores(module, torch.tensor([[0.9], [-0.1]])).round(decimals=3)
        tensor([0.0050, 0.4370])

    References:
        Vrabel, Shem-Ur, Oz, Krueger, "Input Space Mode Connectivity in Deep Neural Networks", ICLR 2025.
    """

    references: Tensor
    classes: Tensor
    points: int = 25
    weights: Tensor | None = None
    chunk_size: int = CHUNK_SIZE

    def __post_init__(self) -> None:
        lambda_grid(self.points)
        if self.chunk_size < 1:
            raise ConfigurationError(
                f"chunk_size={self.chunk_size}: must be 1 or more"
            )
        fits = len(self.references) == len(self.classes)
        integers = not self.classes.is_floating_point()
        if not fits or self.classes.ndim != 1 or not integers:
            raise DataError(
                f"a detector needs one class, an integer, for each reference, got {len(self.references)} references "
                f"and classes of shape {tuple(self.classes.shape)}"
            )

    @property
    def lambdas(self) -> tuple[float, ...]:
        """Where the curves are measured: 0 is the reference, 1 the input that is judged."""
        return lambda_grid(self.points)

    def curves(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """The loss on the ways from the references of the class that the network gives to each input.

        Args:
            module: The network; it stays as it is to the bit.
            inputs: Shape ``(n, *input)``.

        Returns:
            Means over the references, shape ``(n, λ)``.

        Raises:
            DataError: Inputs do not fit the network or the references, or a class has no reference.
        """
        if not isinstance(inputs, Tensor) or inputs.ndim < 2:
            raise DataError(
                "inputs must be a tensor with samples along the first axis"
            )
        found = inputs.new_zeros((0, len(self.lambdas)), dtype=torch.float32)
        with alone():
            classes = _predicted(module, inputs, self.chunk_size)
            which, references = self._ways(classes)
            if not len(which):
                return found
            pairs = make_pairs(
                module,
                references,
                inputs[which.to(inputs.device)],
                classes[which],
                chunk_size=self.chunk_size,
            )
            rows = pairs.loss.along(
                pairs.a, pairs.b, self.lambdas, pairs.owners
            )
            sums = rows.new_zeros(len(inputs), rows.shape[1])
            sums.index_add_(0, which.to(rows.device), rows)
            counts = which.bincount(minlength=len(inputs)).to(sums)
            return sums / counts[:, None]

    def scores(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """How adversarial inputs look: the higher, the more.

        Args:
            module: The network; it stays as it is to the bit.
            inputs: Shape ``(n, *input)``.

        Returns:
            Shape ``(n,)``: the highest loss of the mean curve, or the log-odds of the fitted regression.

        Raises:
            DataError: Inputs do not fit the network or the references, or a class has no reference.
        """
        return self.judge(self.curves(module, inputs))

    def judge(self, curves: Tensor) -> Tensor:
        """The scores of curves that :meth:`curves` measured, shape ``(n,)``."""
        if self.weights is None:
            return curves.amax(1)
        weights = self.weights.to(curves.device)
        scores = _features(curves) @ weights[:-1] + weights[-1]
        return scores.to(curves.dtype)

    def fitted(
        self, module: nn.Module, real: Tensor, adversarial: Tensor
    ) -> BarrierDetector:
        """A detector that reads the whole curve: logistic regression on the logarithm of the loss at every λ.

        Args:
            module: The network; it stays as it is to the bit.
            real: Inputs that are what they seem, other ones than the references, shape ``(n, *input)``.
            adversarial: Attacked inputs.

        Returns:
            The same detector with weights.

        Raises:
            DataError: Inputs do not fit, or there are none of one kind.
        """
        return self.fitted_to(
            self.curves(module, real), self.curves(module, adversarial)
        )

    def fitted_to(self, real: Tensor, adversarial: Tensor) -> BarrierDetector:
        """The same as :meth:`fitted` from curves that :meth:`curves` measured, shape ``(n, λ)`` each.

        Raises:
            DataError: There are none of one kind.
        """
        low, high = real, adversarial
        if not len(low) or not len(high):
            raise DataError(
                f"fitting needs adversarial and real inputs, got {len(high)} and {len(low)}"
            )
        features = torch.cat([_features(low), _features(high)])
        truth = torch.zeros(len(features), dtype=torch.float64)
        truth[len(low) :] = 1.0
        return replace(self, weights=_logistic(features, truth))

    def _ways(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Which input each way leads to, and the reference where it begins."""
        own = self.classes.to(classes.device)
        table = classes[:, None] == own[None, :]
        lonely = classes[~table.any(1)]
        if len(lonely):
            raise DataError(
                f"the network puts an input into class {int(lonely[0])}, and the detector has no reference of it"
            )
        which, reference = table.nonzero().cpu().unbind(1)
        return which, self.references[reference.to(self.references.device)]

    def __repr__(self) -> str:
        count = len(set(self.classes.tolist()))
        how = "fitted" if self.weights is not None else "highest loss"
        return f"BarrierDetector({len(self.classes)} references of {count} classes, {self.points} points, {how})"


def _predicted(module: nn.Module, inputs: Tensor, chunk_size: int) -> Tensor:
    """The class that the network gives to each input."""
    found: list[Tensor] = []

    def remember(output: Any, _target: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise ConfigurationError(
                "detection needs a classifier: outputs must be logits of shape (samples, classes)"
            )
        found.append(output.argmax(1).cpu())
        return output[:, 0]

    if not len(inputs):
        return torch.zeros(0, dtype=torch.long)
    pairs = make_pairs(
        module, inputs, inputs, None, loss=remember, chunk_size=chunk_size
    )
    pairs.loss.values(pairs.a, pairs.owners)
    return torch.cat(found)


def _features(curves: Tensor) -> Tensor:
    """What the regression sees of a curve: its logarithm, since losses run over many decades."""
    losses = curves.detach().double().clamp(min=0).cpu()
    return (losses + _SMALLEST).log()


def _logistic(features: Tensor, truth: Tensor) -> Tensor:
    """Weights and bias of a ridge-penalised logistic regression, both kinds weighing the same, by Newton's method."""
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-9)
    ones = torch.ones(len(features), 1, dtype=torch.float64)
    design = torch.cat([(features - mean) / scale, ones], 1)
    share = torch.where(truth > 0, truth.mean(), 1 - truth.mean())
    importance = 0.5 / (share * len(truth))
    ridge = _RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
    # The bias is not pulled to zero, but for the little that keeps the system regular.
    ridge[-1, -1] = 1e-9
    weights = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(_NEWTON):
        probability = (design @ weights).sigmoid()
        slope = design.T @ (importance * (probability - truth))
        curvature = importance * probability * (1 - probability)
        hessian = design.T @ (curvature[:, None] * design) + ridge
        step = torch.linalg.solve(hessian, slope + ridge @ weights)
        weights = weights - step
        if float(step.abs().max()) < 1e-10:
            break
    # Back to features as they are.
    raw = weights[:-1] / scale
    return torch.cat([raw, (weights[-1] - raw @ mean)[None]])
