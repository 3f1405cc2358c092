"""Which permutation brings one network nearest to another."""

from lightning_rebasin.matching.result import Descent, MatchResult
from lightning_rebasin.matching.weight import WeightMatcher, match_weights

__all__ = ["Descent", "MatchResult", "WeightMatcher", "match_weights"]
