"""What one element of a symmetry group does to weights, one file per kind.

``action.py`` is the contract of a kind and the register of kinds; ``permutation.py`` is the first kind;
``transform.py`` is the value that everything above passes on: one element for every group of a spec.  Importing the
package registers the kinds: each new file needs a line here.
"""

from lightning_rebasin.symmetry.actions import balance as balance
from lightning_rebasin.symmetry.actions.action import (
    Action,
    action_of,
    register_action,
    registered_action,
)
from lightning_rebasin.symmetry.actions.flips import FlipAction
from lightning_rebasin.symmetry.actions.linear import LinearAction
from lightning_rebasin.symmetry.actions.orthogonal import (
    MeanFixingAction,
    OrthogonalAction,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.plane import PlaneAction
from lightning_rebasin.symmetry.actions.scale import ScaleAction
from lightning_rebasin.symmetry.actions.sign import SignAction
from lightning_rebasin.symmetry.actions.splits import SplitAction
from lightning_rebasin.symmetry.actions.transform import Transform

__all__ = [
    "Action",
    "FlipAction",
    "LinearAction",
    "MeanFixingAction",
    "OrthogonalAction",
    "Permutation",
    "PlaneAction",
    "ScaleAction",
    "SignAction",
    "SplitAction",
    "Transform",
    "action_of",
    "register_action",
    "registered_action",
]
