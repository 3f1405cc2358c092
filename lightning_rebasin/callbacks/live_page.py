"""The curves of a training as a page, written anew after every measurement: ``barrier.html`` beside ``barrier.csv``.

It is made from the CSV file, which has the measurements of a run from before it was interrupted, too.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.plotting.page import Frame, write_page

#: (step, epoch) → curve → metric → λ → value.
_Table = dict[tuple[int, int], dict[str, dict[str, dict[float, float]]]]


def write_live_page(
    table: Path, title: str, higher_is_better: Mapping[str, bool]
) -> Path:
    """Write the page of a CSV file of curves beside it.

    Args:
        table: A file that :func:`~lightning_rebasin.callbacks.record.append_csv` wrote.
        title: Title of the page.
        higher_is_better: For which metrics larger is better; the file does not say.

    Returns:
        The page.

    Raises:
        OutputError: The folder cannot be written.
    """
    frames = []
    for (step, epoch), curves in sorted(_read(table).items()):
        made = {}
        for label, values in curves.items():
            made[label] = _curve(values, higher_is_better)
        frames.append(Frame(step, made, f"step {step}, epoch {epoch}"))
    page = table.with_suffix(".html")
    write_page(frames, page, title=title)
    return page


def _read(table: Path) -> _Table:
    """The values in the file, sorted by where they belong."""
    found: _Table = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            when = (int(row["step"]), int(row["epoch"]))
            values = found[when][row["curve"]][row["metric"]]
            values[float(row["lambda"])] = float(row["value"])
    return found


def _curve(
    values: Mapping[str, Mapping[float, float]],
    higher_is_better: Mapping[str, bool],
) -> BarrierCurve:
    """The metrics of one curve, which are measured at the same λ."""
    lambdas = tuple(sorted(next(iter(values.values()))))
    rows = {
        metric: tuple(by_lam[lam] for lam in lambdas)
        for metric, by_lam in values.items()
    }
    return BarrierCurve(lambdas, rows, higher_is_better)
