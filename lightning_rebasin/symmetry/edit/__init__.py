"""Changing a spec by hand, and transforms in the terms of a changed spec."""
