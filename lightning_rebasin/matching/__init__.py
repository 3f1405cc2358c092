"""Which permutation brings one network nearest to another."""

from lightning_rebasin.matching.result import Descent, MatchResult, MatchState
from lightning_rebasin.matching.weight import WeightMatcher, match_weights

__all__ = ["Descent", "MatchResult", "MatchState", "WeightMatcher", "match_weights"]
