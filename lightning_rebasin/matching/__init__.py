"""Which permutation brings one network nearest to another."""

from lightning_rebasin.matching.activation import match_activations
from lightning_rebasin.matching.many.match_many import (
    ManyMatchResult,
    match_many,
)
from lightning_rebasin.matching.result import Descent, MatchResult, MatchState
from lightning_rebasin.matching.search.weight import (
    WeightMatcher,
    match_weights,
)

__all__ = [
    "Descent",
    "ManyMatchResult",
    "MatchResult",
    "MatchState",
    "WeightMatcher",
    "match_activations",
    "match_many",
    "match_weights",
]
