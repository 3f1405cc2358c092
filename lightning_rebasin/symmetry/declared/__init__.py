"""Symmetries that modules declare: what no trace can find, proved all the same.

A trace of the forward pass sees which units are interchangeable.  It cannot see that a function is even, or that the
two sides of a soft decision may be swapped if its rule is negated.  A module that knows such a thing defines

    ``symmetry_spec(self) -> PermutationSpec``

which returns its groups in its own names, most easily by :func:`declare`.  :func:`~lightning_rebasin.infer_spec` asks
every submodule of a network.  The way of a declaration:

- ``declare.py``: writing one;
- ``collect.py``: asking the submodules, and translating to the names of the network;
- ``merge.py``: putting the declared groups into the inferred spec;
- ``prove.py``: trying every declared group on the examples; what fails is pinned, with the reason;
- ``watch.py``: where the units of groups can still be observed.
"""

from lightning_rebasin.symmetry.declared.declare import Place, declare, on

__all__ = ["Place", "declare", "on"]
