"""Paths between inputs: what the loss of one fixed network does in input space.

Everywhere else in the package weights move and data stay; here the weights stay and inputs move.  ``network.py`` holds
a network fixed, ``loss.py`` is its loss as a function of the input, ``pairs.py`` checks what callers give.
``barrier.py`` measures the straight way, ``connect.py`` finds a low one: ``bypass.py`` moves one corner, ``descent.py``
is the optimiser of many inputs at once, ``paths.py`` the value that comes out.  ``synthetic.py`` makes ends from
noise.  ``detector.py`` reads curves, ``rates.py`` says how well, ``adversarial_barrier.py`` is the metric.
"""

from lightning_rebasin.inputs.adversarial_barrier import AdversarialBarrier
from lightning_rebasin.inputs.barrier import input_barrier, input_losses
from lightning_rebasin.inputs.connect import connect_inputs
from lightning_rebasin.inputs.detector import BarrierDetector
from lightning_rebasin.inputs.paths import InputPath, InputPaths
from lightning_rebasin.inputs.synthetic import SyntheticInputs, optimal_inputs

__all__ = [
    "AdversarialBarrier",
    "BarrierDetector",
    "InputPath",
    "InputPaths",
    "SyntheticInputs",
    "connect_inputs",
    "input_barrier",
    "input_losses",
    "optimal_inputs",
]
