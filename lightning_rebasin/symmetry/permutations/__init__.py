"""From a tape to the permutation symmetries: labels, constraints, cells, groups."""
