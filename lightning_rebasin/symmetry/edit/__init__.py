"""Changing a spec by hand, and transforms in the terms of a changed spec.

- ``override.py``: pin, tie or free groups; each function returns a new spec.
- ``restrict.py``: a permutation in the terms of a spec with more pins.
"""
