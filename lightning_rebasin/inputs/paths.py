"""Paths between inputs: where they run, and the loss along them.

A path is a chain of straight pieces.  Its parameter λ runs from 0 at the first end to 1 at the second and grows with
the distance travelled, so that the straight path of a pair and a bent one can be drawn over one axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.landscape.barrier import BarrierCurve, Convention
from lightning_rebasin.landscape.tables import read_json, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-input-paths"


@dataclass(frozen=True, eq=False, repr=False)
class InputPath:
    """One path between two inputs, and the loss on it.

    Args:
        corners: Both ends and the corners between them, shape ``(pieces + 1, *input)``.
        lambdas: Where the loss was measured: fractions of the length, ascending from 0 to 1.
        losses: The loss there.

    Raises:
        DataError: Fewer than two corners, λ that do not ascend from 0 to 1, or another number of losses than of λ.

    Example:
        >>> path = InputPath(torch.tensor([[0.0], [1.0]]), (0.0, 0.5, 1.0), (0.1, 2.0, 0.3))
        >>> path.maximum, path.curve.at("loss"), path.input_at(0.25)
        (2.0, 0.5, tensor([0.2500]))
    """

    corners: Tensor
    lambdas: tuple[float, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.corners) < 2:
            raise DataError("a path needs two corners or more")
        # The curve checks λ and losses.
        curve = BarrierCurve(self.lambdas, {"loss": self.losses}, samples=1)
        object.__setattr__(self, "lambdas", curve.lambdas)
        object.__setattr__(self, "losses", curve.values["loss"])

    @property
    def pieces(self) -> int:
        """Number of straight pieces."""
        return len(self.corners) - 1

    @property
    def maximum(self) -> float:
        """The highest loss that was measured; NaN if one is NaN."""
        found = torch.tensor(self.losses, dtype=torch.float64)
        return float(found.max())

    @property
    def curve(self) -> BarrierCurve:
        """The loss over λ, with the heights of both conventions."""
        return BarrierCurve(self.lambdas, {"loss": self.losses}, samples=1)

    @property
    def length(self) -> float:
        """Length of the path over the distance of its ends: 1 for a straight one."""
        straight = float((self.corners[-1] - self.corners[0]).norm())
        total = float(_lengths(self.corners).sum())
        return total / straight if straight else 1.0

    def input_at(self, lam: float) -> Tensor:
        """The input at a fraction of the length.

        Args:
            lam: Between 0 and 1.

        Returns:
            Shape ``(*input,)``.

        Raises:
            ConfigurationError: λ is outside.
        """
        if not 0.0 <= lam <= 1.0:
            raise ConfigurationError(f"λ = {lam} lies outside [0, 1]")
        marks = corner_marks(self.corners)
        piece = 0
        while piece < self.pieces - 1 and marks[piece + 1] < lam:
            piece += 1
        start, width = marks[piece], marks[piece + 1] - marks[piece]
        part = (lam - start) / width if width else 0.0
        left, right = self.corners[piece], self.corners[piece + 1]
        found: Tensor = (1 - part) * left + part * right
        return found


@dataclass(frozen=True, eq=False, repr=False)
class InputPaths(Sequence[InputPath]):
    """Paths of many pairs through the input space of one network.

    Args:
        paths: One path per pair.
        threshold: The loss below which two inputs count as connected; infinite where nobody asked.

    Example:
        >>> path = InputPath(torch.tensor([[0.0], [1.0]]), (0.0, 0.5, 1.0), (0.1, 2.0, 0.3))
        >>> paths = InputPaths((path,), threshold=0.5)
        >>> paths.maxima, paths.connected(), paths.connected(3.0)
        ((2.0,), (False,), (True,))
    """

    paths: tuple[InputPath, ...]
    threshold: float = math.inf

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.paths[index]

    def __iter__(self) -> Iterator[InputPath]:
        return iter(self.paths)

    @property
    def maxima(self) -> tuple[float, ...]:
        """The highest loss on every path."""
        return tuple(path.maximum for path in self.paths)

    def heights(self, convention: Convention = "mean") -> tuple[float, ...]:
        """The barrier of every path: how much worse its worst point is than its ends.

        Args:
            convention: What is subtracted: the mean of the ends, or the ``"chord"`` between them.

        Raises:
            ConfigurationError: The convention is unknown.
        """
        return tuple(p.curve.height("loss", convention) for p in self.paths)

    def connected(self, threshold: float | None = None) -> tuple[bool, ...]:
        """Whether every path stays at or below a loss; the :attr:`threshold` of the paths if none is given."""
        limit = self.threshold if threshold is None else threshold
        return tuple(maximum <= limit for maximum in self.maxima)

    def plot(
        self,
        path: str | Path | None = None,
        *,
        pairs: Sequence[int] | None = None,
        title: str = "",
        **others: InputPaths,
    ) -> Figure:
        """Draw the loss along paths, and under each curve the inputs on the way if they are images.

        Args:
            path: Where to save the picture; the suffix decides the format.
            pairs: Which pairs; the first three if omitted.
            title: Title of the picture.
            **others: Other paths between the same pairs by label, for instance ``straight=...``.

        Returns:
            The matplotlib figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_inputs

        return plot_inputs(
            {**others, "path": self}, pairs=pairs, path=path, title=title
        )

    def to_dict(self) -> dict[str, Any]:
        """The paths as plain JSON values."""
        rows = []
        for path in self.paths:
            rows.append(
                {
                    "corners": path.corners.tolist(),
                    "lambdas": list(path.lambdas),
                    "losses": list(path.losses),
                }
            )
        limit = None if math.isinf(self.threshold) else self.threshold
        return {"format": FORMAT, "threshold": limit, "paths": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputPaths:
        """Inverse of :meth:`to_dict`; corners come back in single precision.

        Raises:
            DataError: ``data`` does not hold paths.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise DataError(f"these are not paths (no 'format': {FORMAT!r})")
        try:
            paths = []
            for row in data["paths"]:
                corners = torch.tensor(row["corners"], dtype=torch.float32)
                path = InputPath(
                    corners, tuple(row["lambdas"]), tuple(row["losses"])
                )
                paths.append(path)
            limit = data["threshold"]
            return cls(tuple(paths), math.inf if limit is None else limit)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"malformed paths: {error!r}") from error

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        atomic_write_text(path, json.dumps(self.to_dict()) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> InputPaths:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: The file is missing or holds no paths.
        """
        return cls.from_dict(read_json(path, FORMAT))

    def to_csv(self, path: str | Path) -> None:
        """Write one row per pair and point: pair, λ, loss, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        rows = []
        for pair, each in enumerate(self.paths):
            for lam, loss in zip(each.lambdas, each.losses, strict=True):
                rows.append((pair, lam, loss))
        write_csv(path, ["pair", "lambda", "loss"], rows)

    def __repr__(self) -> str:
        maxima = self.maxima
        if not maxima:
            return "InputPaths(no pairs)"
        mean = sum(maxima) / len(maxima)
        text = f"{len(self)} pairs; highest loss {mean:.4g} in the mean, {max(maxima):.4g} at worst"
        if not math.isinf(self.threshold):
            joined = sum(self.connected())
            text += f"; {joined} connected below {self.threshold:g}"
        return f"InputPaths({text})"


def corner_marks(corners: Tensor) -> list[float]:
    """The λ of every corner: its distance along the path over the whole length, 0 … 1.

    Example:
        >>> corner_marks(torch.tensor([[0.0], [3.0], [4.0]]))
        [0.0, 0.75, 1.0]
    """
    lengths = _lengths(corners)
    total = float(lengths.sum())
    if not total:
        # Both ends are the same input: any λ that ascends will do.
        return [k / len(lengths) for k in range(len(lengths) + 1)]
    marks = [0.0, *(lengths.cumsum(0) / total).tolist()]
    marks[-1] = 1.0
    return marks


def _lengths(corners: Tensor) -> Tensor:
    """Length of every piece, in double precision."""
    flat = corners.detach().double().reshape(len(corners), -1)
    lengths: Tensor = (flat[1:] - flat[:-1]).norm(dim=1)
    return lengths
