"""Rules over ATen operations, one file per family.

How to write a rule
===================

Suppose that a network calls an operation that no rule knows: it mixes each time step with the one before and scales
every unit.  (``y[t, u] = gain[u] · (x[t, u] + x[t - 1, u])``.)

>>> import torch
>>> @torch.library.custom_op("rebasin_example::smooth", mutates_args=())
... def smooth(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
...     return gain * (x + x.roll(1, 0))
>>> class Net(torch.nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.gain = torch.nn.Parameter(torch.rand(3))
...         self.before, self.after = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
...     def forward(self, x):
...         return self.after(smooth(self.before(x).tanh(), self.gain))

Without a rule everything that the operation touches is pinned, and the spec says so:

>>> import warnings
>>> from lightning_rebasin import check_equivalence, infer_spec
>>> net, x = Net(), torch.randn(2, 4)
>>> with warnings.catch_warnings(record=True) as caught:
...     warnings.simplefilter("always")
...     spec = infer_spec(net, x)
>>> len(spec.groups), str(caught[0].message)
(0, 'operation rebasin_example.smooth has no rule (rebasin_example.smooth); what it touches is pinned')

**What a label is.**  A rule gets the labels of the arguments and returns those of the results.  A label says for every
dimension of a tensor which *elements* its positions are.  Here is that of a 2×3 weight, whose rows are the elements 0
and 1 and whose columns are the elements 2, 3 and 4:

>>> from lightning_rebasin.symmetry.permutations.elements import Constraints
>>> from lightning_rebasin.symmetry.permutations.labels import Label, Part
>>> store = Constraints()
>>> rows, columns = store.fresh((2,)), store.fresh((3,))
>>> weight = Label(dims=((0,), (1,)), sizes=(2, 3), parts=(Part((0,), rows), Part((1,), columns)))
>>> weight.shape, [part.elements.ids.tolist() for part in weight.parts]
((2, 3), [[0, 1], [2, 3, 4]])

**What a rule says.**  Ask of every dimension: may its positions be exchanged, and together with those of which other
tensor?  Time steps may not, so they are *pinned*, with a reason for the user.  Unit ``u`` of ``x`` meets entry ``u`` of
``gain`` and is unit ``u`` of the result, so the labels are *joined*: dimensions that run together get the same letter.

>>> def smooth_rule(ctx, op):
...     x, gain = op.label("x"), op.label("gain")
...     x = ctx.pin(x, [0], "each time step is mixed with the one before")
...     return [ctx.join([(x, "tu"), (gain, "u")], "tu")]

A letter that the result does not have is summed over.  Dimensions of size 1 are simply left to broadcast.  A layout
that the rule does not cover (a tensor of three dimensions here) is refused by raising
:class:`~lightning_rebasin.symmetry.permutations.rules.base.LayoutNotCovered`: then it is as if there were no rule.

**How to see it work.**  In this package a rule is registered for good by ``@rule("rebasin_example.smooth")``, in the
file of its family, which stands in the imports below.  To try it, register it for the length of a ``with`` block:

>>> from lightning_rebasin.symmetry.permutations.rules import RULES
>>> with RULES.added("rebasin_example.smooth", smooth_rule):
...     spec = infer_spec(net, x)
>>> [(group.size, spec.tensors_of(group.id)) for group in spec.groups.values()]
[(3, ('gain', 'before.weight', 'before.bias', 'after.weight'))]

**How to prove it.**  Permute every group at random: the outputs must stay, to rounding, and they must change when one
axis is permuted alone:

>>> from lightning_rebasin import Permutation
>>> permutation = Permutation.random(spec, torch.Generator().manual_seed(0))
>>> check_equivalence(net, permutation, x) < 1e-8
True

A rule that joins too little fails here.  This one forgets ``gain``:

>>> with RULES.added("rebasin_example.smooth", lambda ctx, op: [op.label("x")]):
...     with warnings.catch_warnings(action="ignore"):
...         spec = infer_spec(net, x)
>>> permutation = Permutation.random(spec, torch.Generator().manual_seed(0))
>>> check_equivalence(net, permutation, x)
Traceback (most recent call last):
    ...
lightning_rebasin.errors.EquivalenceError: ...

A rule that pins too much passes, so count the groups that you expect as well.
"""

from lightning_rebasin.symmetry.permutations.rules import (
    attention,
    concatenation,
    convolution,
    images,
    lookups,
    normalisation,
    order,
    pointwise,
    products,
    reduction,
    scatters,
    slices,
    stacking,
    views,
    writes,
)
from lightning_rebasin.symmetry.permutations.rules.registry import RULES

__all__ = [
    "RULES",
    "attention",
    "concatenation",
    "convolution",
    "images",
    "lookups",
    "normalisation",
    "order",
    "pointwise",
    "products",
    "reduction",
    "scatters",
    "slices",
    "stacking",
    "views",
    "writes",
]
