"""Which changes of the weights leave the function of a network unchanged: a map of the rooms, and a glossary.

The way of a network through the rooms::

    network ──run──▶ tape ──rules──▶ labels, constraints ──colours──▶ cells ──names──▶ groups ──gate──▶ proof
             run/    trace/          permutations/                                     spec/            proof/

Rooms, from the bottom up; each may import only from those above it in this list, and `tests/test_layers.py` says which:

- ``spec/``: what a spec holds, as values, and their files: groups, axis maps, pins, activation addresses.
- ``run/``: running somebody's model without touching it: example inputs, Lightning's steps, private copies.
- ``actions/``: what one element of a group does to weights, one file per kind; the only dispatch on ``Group.kind``.
- ``trace/``: one forward pass written down as a tape; the table of contractions.
- ``permutations/``: from tapes to permutation groups; ``permutations/rules/`` has one rule per ATen operation.
- ``continuous/``: a second analysis of the same tape: which groups may be scaled, signed, rotated or mixed.
- ``declared/``: symmetries that modules declare (``symmetry_spec``): collected, put into the spec, proved.
- ``edit/``: changing a spec by hand, and expressing a transform in a changed spec.
- ``proof/``: the gate, which runs the network before and after, and finds the culprit if they differ.
- ``observe.py``: handing over the activations in which the units of a group can be seen.
- ``infer.py``: :func:`infer_spec`, the way above from end to end.
- ``kinds.py``: proposals of ``continuous/`` tried by the gate; what holds goes into the spec.
- ``untied.py``: what would be true if a tied weight had a tensor for each of its uses.
- ``override.py``: the old home of ``edit/override.py``; it warns.

Where is what?

- Which operations let units move (``relu``, ``matmul``, ``view``, ...): ``permutations/rules/``, by family.
- Where a permutation meets a weight: ``actions/permutation.py`` and ``actions/gather.py``.
- Where a new kind of symmetry goes: an action in ``actions/``, a step in ``matching/steps/``.
- How a module declares a symmetry that no trace can find: ``declared/``.
- Where a spec becomes a file, and is read with distrust: ``spec/json.py``.

Glossary, in the order of the way:

Running (``run/``, ``trace/``)
    *example*: the arguments of one run of the network.
    *tape*: the operations of one forward pass on numbered values, in single-assignment form.
    *value*: one tensor of the forward pass; *node*: one operation; *origin*: where a value comes from (an operation,
    an input, the state dict, a constant).
    *contraction*: an operation that sums two operands over a common dimension (a product of matrices, a convolution).

Labels and constraints (``permutations/``)
    *element*: the integer that stands for one index of one axis of a parameter.
    *element run*: the elements of one axis, which are consecutive integers.
    *site*: a row-major factor of a tensor dimension: the 6 columns of a viewed attention weight are 2 heads × 3 dims.
    *label*: what the indices of a tensor are: its sites, and which elements stand along them.
    *part*: elements that stand over some of the sites of a label.
    *pinned*: of a site or position whose order matters; *free*: of a site along which a tensor is constant.
    *rule*: says, for one ATen operation, which labels its results have and which constraints it makes.
    *join*: the operation on labels behind most rules: dimensions that run together get the same sites and elements.
    *constraint* or *table*: rows of elements that a symmetry must map onto rows of the same table; its kind is one of
    *equal* (two elements are one unit), *relation* (child element and its parent), *position* (an element and a value
    that it keeps) and *mark* (a set that is used as a set).
    *defining table*: one that describes elements invented for an intermediate tensor; it counts only if those are used.
    *pending*: of elements that were picked out one by one: they are marked as soon as the tensor is used.
    *wish* or *refinement*: a rule's request that an axis be ordered separately in each block of another one; granted
    in the next pass.

Cells (``permutations/colouring.py``, ``cells.py``)
    *class*: elements that equalities connect: one unit of the network.
    *colour*: what elements or classes look like to the constraints so far; refined until nothing new is seen.
    *cell*: the classes of one colour; only they can change places.

Kinds beyond permutations (``continuous/``)
    *vector*: the units of a group taken as coordinates, on their way through the tape.
    *parity*: whether a tensor writes a vector (+1) or reads it (−1, and gets the contragredient).
    *exponent*: how often a number inside each unit multiplies a tensor; an operation is an equation between exponents.
    *candidate*: one larger kind that is proposed for a group; only the gate makes it more than a proposal.
    *fold*: a gain that is multiplied into what reads it, and is 1 from then on.
    *untied*: of a network in which a tied weight has become a tensor for each of its uses.
    *gauge*: one choice among all weights that compute the same function; the *canonical gauge* is the one in which
    two networks may be compared.

Specs (``spec/``)
    *spec*: the groups of a network, where they act, what is pinned and why.
    *group*: interchangeable units of one kind of symmetry; it may lie inside another group, its *parent*.
    *unit*: one interchangeable thing, a hidden neuron, a channel, a head.
    *instance*: one of the sets of a nested group, one for each member of the parent.
    *member*: a unit counted over all instances: 3 dims in each of 2 heads are 6 members.
    *component*: where the units of one group live over some sites of one tensor.
    *axis map*: the sites and components of one tensor.
    *alias*: another name of a tied tensor.
    *pin*: a dimension, or some positions of it, that stays, with the reason.
    *note*: a warning of the inference that travels with the spec.
    *declaration*: what a module says about its own symmetries, in its own names.
    *importance*: how much entries of a tensor count in the matching objective.
    *activation address*: an operand of a contraction where units can be observed: the operation, which of its runs, and
    which argument.

Acting and proving (``actions/``, ``proof/``)
    *kind*: which symmetry the units of a group have (``"permutation"``).
    *action*: what the elements of groups of one kind do: multiply, invert, change weights.
    *element of a group*: one symmetry, as a tensor; not to be confused with the elements of the constraints.
    *transform*: one element for every group of a spec.
    *permutation*: a transform that only reorders, ``new[i] = old[p[i]]``.
    *flat order*: the order of all members of a group as one index, the moves of its parents included.
    *gate*: the check that a transformed network computes the same function, without which nothing is written.
    *negative control*: a change that must alter the output; if it does not, the gate could not have seen a fault.
    *sandbox*: the private float64 copy on which the gate runs.
"""

from lightning_rebasin.symmetry.actions import Permutation, Transform
from lightning_rebasin.symmetry.declared import declare, on
from lightning_rebasin.symmetry.edit.override import (
    free_group,
    pin_tensor,
    tie_groups,
)
from lightning_rebasin.symmetry.infer import infer_spec, infer_spec_many
from lightning_rebasin.symmetry.proof.gate import (
    Equivalence,
    check_equivalence,
    measure_equivalence,
)
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.run.untie import untie
from lightning_rebasin.symmetry.spec.pin import pin_group
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.untied import Untied
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    Importance,
    Pin,
    TensorInfo,
)

__all__ = [
    "AxisMap",
    "Component",
    "Equivalence",
    "Example",
    "Group",
    "Importance",
    "Permutation",
    "PermutationSpec",
    "Pin",
    "TensorInfo",
    "Transform",
    "Untied",
    "check_equivalence",
    "declare",
    "free_group",
    "infer_spec",
    "infer_spec_many",
    "measure_equivalence",
    "on",
    "pin_group",
    "pin_tensor",
    "tie_groups",
    "untie",
]
