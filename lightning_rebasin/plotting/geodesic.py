"""Geodesics: how the energy of a chain falls, and how far outputs travel along paths."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.landscape.geodesic_values import (
    Geodesic,
    GeodesicLength,
)
from lightning_rebasin.plotting.style import cycle, finish, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_energies(
    chains: Mapping[str, Geodesic],
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw the energy of chains over the steps of their optimisation.

    Args:
        chains: Chains by label.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((5.4, 3.4))
    axes = figure.subplots()
    for colour, (label, chain) in zip(
        cycle(len(chains)), chains.items(), strict=True
    ):
        fell = f"{chain.energies[0]:.3g} → {chain.energies[-1]:.3g}"
        text = f"{label}: {fell}" if label else fell
        axes.plot(chain.energies, linewidth=1, color=colour, label=text)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("Σ JS of consecutive outputs")
    finish(axes)
    return save(figure, path, title)


def plot_output_lengths(
    lengths: Mapping[str, GeodesicLength],
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw how far the outputs have come at every t; the dashed line is the distance of the ends' outputs.

    Args:
        lengths: Lengths by label.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((5.4, 3.6))
    axes = figure.subplots()
    for colour, (label, length) in zip(
        cycle(len(lengths)), lengths.items(), strict=True
    ):
        ratio = f"{length.normalised_length:.3g} × the ends"
        axes.plot(
            length.ts,
            [0.0, *accumulate(length.steps)],
            marker="o",
            markersize=2.5,
            linewidth=1.2,
            color=colour,
            label=f"{label}: {ratio}" if label else ratio,
        )
        straight = (8.0 * length.ends) ** 0.5
        axes.axhline(straight, color=colour, linewidth=0.8, linestyle="--")
    axes.set_xlabel("t")
    axes.set_ylabel("length among outputs")
    finish(axes)
    return save(figure, path, title)
