"""Linear mode connectivity for PyTorch Lightning.

Infer and prove the permutation symmetries of a network, bring two trainings into one basin, watch the loss barrier
during training, and merge checkpoints.  Names are imported on first use, so that the layers below the callbacks work
without importing Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_rebasin.version import __version__

if TYPE_CHECKING:
    from lightning_rebasin.assignment import (
        solve_assignment as solve_assignment,
    )
    from lightning_rebasin.callbacks import (
        CheckpointSnapshot as CheckpointSnapshot,
    )
    from lightning_rebasin.callbacks import InputBarrier as InputBarrier
    from lightning_rebasin.callbacks import (
        LandscapeFeatures as LandscapeFeatures,
    )
    from lightning_rebasin.callbacks import LossBarrier as LossBarrier
    from lightning_rebasin.checkpoints import (
        merge_checkpoints as merge_checkpoints,
    )
    from lightning_rebasin.checkpoints import (
        read_checkpoint as read_checkpoint,
    )
    from lightning_rebasin.checkpoints import (
        write_checkpoint as write_checkpoint,
    )
    from lightning_rebasin.inputs import (
        AdversarialBarrier as AdversarialBarrier,
    )
    from lightning_rebasin.inputs import BarrierDetector as BarrierDetector
    from lightning_rebasin.inputs import connect_inputs as connect_inputs
    from lightning_rebasin.inputs import input_barrier as input_barrier
    from lightning_rebasin.inputs import optimal_inputs as optimal_inputs
    from lightning_rebasin.landscape import BarrierCurve as BarrierCurve
    from lightning_rebasin.landscape import barrier_matrix as barrier_matrix
    from lightning_rebasin.landscape import geodesic_length as geodesic_length
    from lightning_rebasin.landscape import geodesic_path as geodesic_path
    from lightning_rebasin.landscape import layer_barriers as layer_barriers
    from lightning_rebasin.landscape import load_trajectory as load_trajectory
    from lightning_rebasin.landscape import loss_plane as loss_plane
    from lightning_rebasin.landscape import loss_profile as loss_profile
    from lightning_rebasin.landscape import measure_barrier as measure_barrier
    from lightning_rebasin.landscape import (
        measure_instability as measure_instability,
    )
    from lightning_rebasin.landscape import measure_path as measure_path
    from lightning_rebasin.landscape import predict_barrier as predict_barrier
    from lightning_rebasin.matching import MatchResult as MatchResult
    from lightning_rebasin.matching import (
        match_activations as match_activations,
    )
    from lightning_rebasin.matching import match_many as match_many
    from lightning_rebasin.matching import match_weights as match_weights
    from lightning_rebasin.merging import average as average
    from lightning_rebasin.merging import interpolate as interpolate
    from lightning_rebasin.merging import refit as refit
    from lightning_rebasin.merging import repair as repair
    from lightning_rebasin.merging import reset_batch_norm as reset_batch_norm
    from lightning_rebasin.modules import CurveModule as CurveModule
    from lightning_rebasin.modules import CurveReport as CurveReport
    from lightning_rebasin.modules import MergeModule as MergeModule
    from lightning_rebasin.modules import SoftTreeModule as SoftTreeModule
    from lightning_rebasin.modules import StarModule as StarModule
    from lightning_rebasin.modules import StarReport as StarReport
    from lightning_rebasin.symmetry import Example as Example
    from lightning_rebasin.symmetry import Permutation as Permutation
    from lightning_rebasin.symmetry import PermutationSpec as PermutationSpec
    from lightning_rebasin.symmetry import Transform as Transform
    from lightning_rebasin.symmetry import (
        check_equivalence as check_equivalence,
    )
    from lightning_rebasin.symmetry import declare as declare
    from lightning_rebasin.symmetry import infer_spec as infer_spec
    from lightning_rebasin.symmetry import infer_spec_many as infer_spec_many
    from lightning_rebasin.symmetry import on as on
    from lightning_rebasin.symmetry import untie as untie
    from lightning_rebasin.trees import SoftTreeEnsemble as SoftTreeEnsemble

_HOMES = {
    "assignment": ("solve_assignment",),
    "callbacks": (
        "CheckpointSnapshot",
        "InputBarrier",
        "LandscapeFeatures",
        "LossBarrier",
    ),
    "checkpoints": (
        "merge_checkpoints",
        "read_checkpoint",
        "write_checkpoint",
    ),
    "inputs": (
        "AdversarialBarrier",
        "BarrierDetector",
        "connect_inputs",
        "input_barrier",
        "optimal_inputs",
    ),
    "landscape": (
        "BarrierCurve",
        "barrier_matrix",
        "geodesic_length",
        "geodesic_path",
        "layer_barriers",
        "load_trajectory",
        "loss_plane",
        "loss_profile",
        "measure_barrier",
        "measure_instability",
        "measure_path",
        "predict_barrier",
    ),
    "matching": (
        "MatchResult",
        "match_activations",
        "match_many",
        "match_weights",
    ),
    "merging": (
        "average",
        "interpolate",
        "refit",
        "repair",
        "reset_batch_norm",
    ),
    "modules": (
        "CurveModule",
        "CurveReport",
        "MergeModule",
        "SoftTreeModule",
        "StarModule",
        "StarReport",
    ),
    "symmetry": (
        "Example",
        "Permutation",
        "PermutationSpec",
        "Transform",
        "check_equivalence",
        "declare",
        "infer_spec",
        "infer_spec_many",
        "on",
        "untie",
    ),
    "trees": ("SoftTreeEnsemble",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604  the names are those of _HOMES


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
