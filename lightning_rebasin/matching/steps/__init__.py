"""The best element of one group for its cost, one file per kind.

``step.py`` is the contract and the registry, ``permutation.py`` the assignment and its nested form, ``nested.py`` the
same for families of any kinds, which only ``search/general.py`` asks for.  Importing the package registers the kinds.
"""

from lightning_rebasin.matching.steps import permutation as permutation
