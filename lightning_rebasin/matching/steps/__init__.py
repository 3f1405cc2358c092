"""The best element of one group for its cost, one file per family of kinds.

``step.py`` is the contract and the registry, ``permutation.py`` the assignment and its nested form, ``numbers.py``,
``procrustes.py`` and ``trees.py`` the other kinds, ``nested.py`` the same for families of any kinds, which only
``search/general.py`` asks for.  Importing the package registers the kinds.
"""

from lightning_rebasin.matching.steps import numbers as numbers
from lightning_rebasin.matching.steps import permutation as permutation
from lightning_rebasin.matching.steps import procrustes as procrustes
from lightning_rebasin.matching.steps import trees as trees
