"""One set of weights out of several aligned ones."""

from lightning_rebasin.merging.interpolate import average, interpolate

__all__ = ["average", "interpolate"]
