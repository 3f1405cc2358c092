"""Symmetries that modules declare: what no trace can find, proved all the same."""

from lightning_rebasin.symmetry.declared.declare import Place, declare, on

__all__ = ["Place", "declare", "on"]
