"""Several networks at once: merge-many and cycle-consistent matching."""
