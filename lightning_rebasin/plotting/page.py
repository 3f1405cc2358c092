"""Curves as one interactive page: a single HTML file that needs no network, in light and dark, on paper and on a phone.

The page holds its data as a block of JSON and draws them itself: choose a metric, move along λ, move through the
training.  The data can be read back from it with any JSON reader.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.landscape.barrier import BarrierCurve


@dataclass(frozen=True)
class Frame:
    """The curves of one moment of a training.

    Args:
        step: When, in whatever the page counts.
        curves: Curves by label, ``{"naive": ..., "matched": ...}``.
        label: How to call the moment.
    """

    step: float
    curves: Mapping[str, BarrierCurve]
    label: str = ""


def write_page(
    curves: Mapping[str, BarrierCurve] | Sequence[Frame],
    path: str | Path,
    *,
    title: str = "Loss between two models",
    unit: str = "step",
) -> None:
    """Write curves, or their development over a training, as one self-contained HTML page, atomically.

    Args:
        curves: Curves by label, or several frames of them in the order of time.
        path: The file.
        title: Title of the page.
        unit: What the steps of the frames count.

    Raises:
        ConfigurationError: There is nothing to show.
        OutputError: The folder does not exist or cannot be written.

    Example:
        >>> import tempfile
        >>> curve = BarrierCurve((0.0, 0.5, 1.0), {"loss": (0.1, 0.9, 0.3)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_page({"naive": curve}, f"{folder}/barrier.html")
        ...     '"height":0.7' in Path(folder, "barrier.html").read_text()
        True
    """
    if isinstance(curves, Mapping):
        frames: Sequence[Frame] = [Frame(0, curves)]
    else:
        frames = curves
    metrics = _metrics(frames)
    if not metrics:
        raise ConfigurationError("there is no curve to show on a page")
    data = {
        "unit": unit,
        "metrics": metrics,
        "frames": [_frame(frame) for frame in frames],
    }
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    page = template.replace("__TITLE__", html.escape(title))
    atomic_write_text(path, page.replace("__DATA__", _json(data)))


def _metrics(frames: Sequence[Frame]) -> list[str]:
    """All metrics, losses first: what people look for."""
    names: dict[str, None] = {}
    for frame in frames:
        for curve in frame.curves.values():
            names |= dict.fromkeys(curve.values)
    return sorted(names, key=lambda name: "loss" not in name)


def _frame(frame: Frame) -> dict[str, Any]:
    """One frame as plain values."""
    return {
        "step": frame.step,
        "label": frame.label,
        "curves": {
            label: _curve(curve) for label, curve in frame.curves.items()
        },
    }


def _curve(curve: BarrierCurve) -> dict[str, Any]:
    """One curve as plain values, with the barrier of each metric."""
    heights = {}
    for name in curve.values:
        height = curve.height(name)
        heights[name] = {"height": _number(height), "at": curve.at(name)}
    values = {}
    for name, row in curve.values.items():
        values[name] = [_number(value) for value in row]
    return {
        "lambdas": list(curve.lambdas),
        "values": values,
        "heights": heights,
    }


def _number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity; seven digits are more than any picture shows."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _json(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")
