"""The best element of one group for a cost matrix, one file per kind."""
