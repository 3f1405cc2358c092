"""A second analysis of the same tape: which groups of units have more symmetries than their order.

The first analysis (``permutations/``) found the units, and labels that say along which dimensions of every value of
the forward pass they stand.  Here every operation is asked again, with these labels at hand: if the units of a group
were not only reordered but multiplied by numbers, or mixed by a matrix, would the operation commute with it?

- ``carrying.py``: which groups the values of a tape carry.
- ``operations.py``: one operation as a walk of a group through a tape sees it, and families of operations.
- ``mixing.py``: matrices.  A group whose units are only copied, added, contracted (``linear_operations.py``) and
  normalised as a whole (``norm_operations.py``) may be mixed: by any invertible matrix, or by a rotation if it is
  normalised, or by one that keeps the mean.  ``vectors.py`` is what such a walk knows, ``gains.py`` what it knows of
  gains, ``roles.py`` which copy of its units a value holds where.
- ``exponents.py``: numbers.  One unknown exponent for each value; operations are linear equations between them.
- ``systems.py``: such equations over the rational numbers and over the integers modulo 2.
- ``planes.py``: pairs of query and key units under rotary positions; ``projections.py`` finds the weights behind them,
  ``turns.py`` follows their columns, ``rotary_pairs.py`` and ``heads.py`` say what is a pair and what is a head, and
  ``plane_maps.py`` puts pairs into a spec.
- ``passing.py``: biases that an attention cancels or passes on; ``attentions.py`` finds the attentions.
- ``candidates.py``: what was found, as changes of a spec; ``enlarge.py`` makes them.

What is found here is a proposal.  The gate (``proof/kinds.py``) draws random elements and hands out only what holds.
"""
