"""Coordinate descent over all groups of one pair of networks, and where it starts.

``policy.py`` says how many descents there are and from where, ``weight.py`` runs them (and may skip or stop where a
network is too large or the answer obvious), ``descent.py`` and ``anneal.py`` are single descents.  ``general.py`` is
the same for other kinds of symmetry, with a shorter plan of its own.
"""
