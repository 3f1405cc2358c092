"""``AdversarialBarrier``: a torchmetrics metric of how well barriers in input space tell attacks from real inputs."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.inputs.detector import BarrierDetector
from lightning_rebasin.inputs.rates import auroc, true_positive_rate


@final
class AdversarialBarrier(Metric):
    """AUROC of detection by barriers in input space, or the share of attacks that is caught at a rate of false alarms.

    For use in ``validation_step``: update it with the module, inputs, and whether they were attacked, and log it.
    Several in one ``MetricCollection`` measure the curves once, since they share their states.

    Args:
        detector: The references, and how curves are read.
        false_positive_rate: Report the share of attacked inputs that score above all but this share of the real ones;
            ``None`` for the AUROC.
        **kwargs: Options of every torchmetrics metric.

    Raises:
        ConfigurationError: The rate is not between 0 and 1.

    Example:
        >>> module = nn.Linear(1, 2, bias=False)
        >>> _ = module.weight.data.copy_(torch.tensor([[3.0], [-3.0]]))
        >>> metric = AdversarialBarrier(BarrierDetector(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])))
        >>> metric.update(module, torch.tensor([[0.9], [-0.8]]), attacked=False)
        >>> metric.update(module, torch.tensor([[0.1], [-0.1]]), attacked=True)
        >>> metric.compute()
        tensor(1.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    attacked: list[Tensor]

    def __init__(
        self,
        detector: BarrierDetector,
        false_positive_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if false_positive_rate is not None and not (
            0 <= false_positive_rate <= 1
        ):
            raise ConfigurationError(
                f"false_positive_rate={false_positive_rate}: must lie between 0 and 1"
            )
        self.detector = detector
        self.false_positive_rate = false_positive_rate
        # Lists that are joined over processes: ranks cannot be merged from sums.
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("attacked", [], dist_reduce_fx="cat")

    @override
    def update(
        self, module: nn.Module, inputs: Tensor, attacked: bool | Tensor
    ) -> None:
        """Measure the curves of a batch.

        Args:
            module: The network; it stays as it is to the bit.
            inputs: Shape ``(n, *input)``.
            attacked: Whether they were attacked: one for all, or booleans of shape ``(n,)``.

        Raises:
            DataError: Inputs do not fit the network or the references, a class has no reference, or there are not as
                many truths as inputs.
        """
        truth = torch.as_tensor(attacked, device=inputs.device).bool()
        if truth.ndim == 0:
            truth = truth.expand(len(inputs))
        if truth.shape != (len(inputs),):
            raise DataError(
                f"attacked has shape {tuple(truth.shape)} for {len(inputs)} inputs"
            )
        found = self.detector.scores(module, inputs)
        self.scores.append(found.float().to(self.device))
        self.attacked.append(truth.to(self.device))

    @override
    def compute(self) -> Tensor:
        """The AUROC or the rate, over all processes.

        Raises:
            DataError: There were no attacked inputs, or no real ones.
        """
        scores, truth = dim_zero_cat(self.scores), dim_zero_cat(self.attacked)
        if self.false_positive_rate is None:
            value = auroc(scores, truth)
        else:
            value = true_positive_rate(scores, truth, self.false_positive_rate)
        return torch.tensor(value, device=self.device)
