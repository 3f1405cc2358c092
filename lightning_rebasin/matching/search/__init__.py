"""Coordinate descent over all groups of one pair of networks, and where it starts."""
