"""Changing a spec by hand, and transforms in the terms of a changed spec.

- ``override.py``: pin, tie or free groups; each function returns a new spec.
- ``permuting.py``: the part of a spec that only changes the order of units.
- ``restrict.py``: a permutation in the terms of a spec with more pins.
"""
