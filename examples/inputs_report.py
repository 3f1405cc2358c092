"""Tables and pictures of ``inputs_study.py``, and its intervals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.inputs import BarrierDetector
from lightning_rebasin.inputs.rates import auroc, true_positive_rate

RESAMPLES = 1000
PUBLISHED = {"within": 1.38, "published": 5.83}
PUBLISHED_AUROC = 0.938
#: Of real and PGD inputs, every second one fits the detector; the others are judged.
FIT, JUDGE = slice(0, None, 2), slice(1, None, 2)
Measured = Mapping[str, Mapping[str, Any]]
Rate = Callable[[Tensor, Tensor], float]


def write_report(
    name: str, known: Measured, detector: BarrierDetector, folder: Path
) -> str:
    """Write numbers, tables and pictures of what was measured so far, and return the tables."""
    detection = detect(known, detector) if "within" in known else {}
    text = "\n".join(
        [f"# {name}", "", paths_table(known), "", detection_table(detection)]
    )
    atomic_write_text(folder / "table.md", text + "\n")
    numbers = {"paths": summary(known), "detection": detection}
    atomic_write_text(
        folder / "numbers.json", json.dumps(numbers, indent=1) + "\n"
    )
    picture(name, known, folder / "curves.png")
    return text


def summary(known: Measured) -> dict[str, dict[str, float]]:
    """Means and shares of every kind of pairs."""
    found = {}
    for part, row in known.items():
        if "naive" not in row:
            found[part] = {"pairs": row["pairs"], "reached": row["reached"]}
            continue
        numbers = {
            "pairs": row["pairs"],
            "reached": row["reached"],
            "naive_max_mean": statistics.fmean(row["naive"]),
            "naive_max_median": statistics.median(row["naive"]),
            "naive_connected": share(row["naive"]),
        }
        if "optimised" in row:
            numbers |= {
                "optimised_pairs": len(row["optimised"]),
                "optimised_max_mean": statistics.fmean(row["optimised"]),
                "optimised_connected": share(row["optimised"]),
                "pieces_mean": statistics.fmean(row["pieces"]),
                "length_mean": statistics.fmean(row["lengths"]),
            }
        found[part] = numbers | {"seconds": row.get("seconds", 0.0)}
    return found


def share(maxima: Sequence[float], threshold: float = 0.5) -> float:
    """The share of paths below the threshold."""
    return sum(m <= threshold for m in maxima) / len(maxima)


def paths_table(known: Measured) -> str:
    """Highest losses on naive and optimised paths."""
    heads = "pairs", "n", "reached", "segment: mean max", "median", "≤ .5"
    more = "published", "optimised: n", "mean max", "≤ .5", "pieces", "length"
    lines = [
        "| " + " | ".join((*heads, *more)) + " |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for part, row in summary(known).items():
        cells = [part, str(row["pairs"]), f"{100 * row['reached']:.0f} %"]
        if "naive_max_mean" in row:
            cells += [
                f"{row['naive_max_mean']:.3f}",
                f"{row['naive_max_median']:.3f}",
                f"{100 * row['naive_connected']:.0f} %",
                f"{PUBLISHED[part]:.2f}" if part in PUBLISHED else "",
            ]
        if "optimised_pairs" in row:
            cells += [
                str(row["optimised_pairs"]),
                f"{row['optimised_max_mean']:.3f}",
                f"{100 * row['optimised_connected']:.0f} %",
                f"{row['pieces_mean']:.2f}",
                f"{row['length_mean']:.2f}",
            ]
        cells += [""] * (12 - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def detect(
    known: Measured, detector: BarrierDetector
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """AUROC and rates of every attack, for every way to score."""
    real = known["within"]
    fitted = None
    if "pgd" in known:
        fitted = detector.fitted_to(
            torch.tensor(real["curves"])[FIT],
            torch.tensor(known["pgd"]["curves"])[FIT],
        )
    found = {}
    for part, row in known.items():
        if part == "within" or "curves" not in row:
            continue
        low, high = torch.tensor(real["curves"]), torch.tensor(row["curves"])
        scores = {
            "one segment": (
                torch.tensor(real["naive"]),
                torch.tensor(row["naive"]),
            ),
            "detector": (detector.judge(low), detector.judge(high)),
            "loss of the input alone": (low[:, -1], high[:, -1]),
        }
        if fitted is not None:
            judged = high[JUDGE] if part == "pgd" else high
            scores["fitted detector"] = (
                fitted.judge(low[JUDGE]),
                fitted.judge(judged),
            )
        found[part] = {how: rates(*pair) for how, pair in scores.items()}
    return found


def rates(low: Tensor, high: Tensor) -> dict[str, list[float]]:
    """AUROC and the shares caught at 1 and 5 % false alarms, each with its interval."""
    kinds: dict[str, Rate] = {
        "auroc": auroc,
        "tpr_at_1": lambda s, t: true_positive_rate(s, t, 0.01),
        "tpr_at_5": lambda s, t: true_positive_rate(s, t, 0.05),
    }
    return {
        name: interval(low.double(), high.double(), rate)
        for name, rate in kinds.items()
    }


def interval(low: Tensor, high: Tensor, rate: Rate) -> list[float]:
    """A rate, and the bootstrap interval of 95 %: both kinds are resampled."""
    truth = torch.cat([torch.zeros(len(low)), torch.ones(len(high))]).bool()
    value = rate(torch.cat([low, high]), truth)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = []
        for own in (low, high):
            chosen = torch.randint(len(own), (len(own),), generator=generator)
            rows.append(own[chosen])
        drawn.append(rate(torch.cat(rows), truth))
    drawn.sort()
    tail = RESAMPLES // 40
    return [round(v, 4) for v in (value, drawn[tail], drawn[-tail - 1])]


def detection_table(found: Mapping[str, Any]) -> str:
    """One row per attack and way to score."""
    lines = [
        f"Published AUROC (one segment, attack as published): {PUBLISHED_AUROC}.",
        "",
        "| attack | score | AUROC | caught at 1 % false alarms | at 5 % |",
        "|---|---|--:|--:|--:|",
    ]
    for part, ways in found.items():
        for how, numbers in ways.items():
            cells = [part, how]
            for value, lower, upper in numbers.values():
                cells.append(f"{value:.3f} ({lower:.3f}–{upper:.3f})")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(name: str, known: Measured, path: Path) -> None:
    """Mean losses along the segments, and the highest losses before and after optimisation."""
    from lightning_rebasin.plotting.style import (
        cycle,
        finish,
        new_figure,
        save,
    )

    drawn = {part: row for part, row in known.items() if "naive" in row}
    figure = new_figure((10.5, 5.6))
    left, right = figure.subplots(1, 2)
    colours = cycle(len(drawn))
    for i, (part, row) in enumerate(drawn.items()):
        curve = row["naive_curve"]
        lam = [k / (len(curve) - 1) for k in range(len(curve))]
        style = "-" if i < 7 else "--"
        left.plot(lam, curve, style, color=colours[i], label=part)
    left.set_yscale("log")
    left.set_xlabel("λ, from the real image to the other end")
    left.set_ylabel("mean loss on the segment")
    for label, key, shift in (
        ("segment", "naive", -0.17),
        ("optimised path", "optimised", 0.17),
    ):
        rows = [max_clamped(row.get(key, [])) for row in drawn.values()]
        places = [i + shift for i in range(len(rows))]
        colour = cycle(2)[key == "optimised"]
        for place, values in zip(places, rows, strict=True):
            right.plot(
                [place] * len(values), values, ".", color=colour, alpha=0.25
            )
        middles = [statistics.median(v) if v else None for v in rows]
        right.plot(places, middles, "_", ms=12, mew=2, color=colour)
        right.lines[-1].set_label(f"{label} (median)")
    right.axhline(0.5, color="0.5", linewidth=0.8)
    right.set_yscale("log")
    right.set_xticks(range(len(drawn)), list(drawn), rotation=60, ha="right")
    right.set_ylabel("highest loss on the path")
    finish(left)
    left.legend(
        frameon=False,
        fontsize=8,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(0, 1),
    )
    finish(right)
    save(figure, path, name)


def max_clamped(values: Sequence[float]) -> list[float]:
    """Losses for a logarithmic axis."""
    return [max(value, 1e-4) for value in values]
