"""What one element of a symmetry group does to weights, one file per kind."""
