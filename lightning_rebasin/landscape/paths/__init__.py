"""Paths through weight space, one file each: from a parameter to a :class:`~lightning_rebasin.landscape.points.Point`.

``line.py`` is the segment of a barrier, ``bezier.py`` and ``polygon.py`` are curves with bends, ``chain.py`` joins
several of them, ``plane.py`` is spanned by three models, ``star.py`` has a centre that is joined to every model.  A
path only says where its points are; what the loss is there is measured by the one engine in ``landscape/probe.py``.
"""

from lightning_rebasin.landscape.paths.bezier import Bezier
from lightning_rebasin.landscape.paths.chain import Chain
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.paths.plane import Plane
from lightning_rebasin.landscape.paths.polygon import Polygon
from lightning_rebasin.landscape.paths.star import Star

__all__ = ["Bezier", "Chain", "Line", "Plane", "Polygon", "Star"]
