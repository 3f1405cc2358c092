"""Cost matrices of the groups: what the objective gains if a unit takes a place."""
