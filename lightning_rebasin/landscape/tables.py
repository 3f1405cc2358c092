"""Tables of measurements as CSV and JSON files, written atomically."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_rebasin.errors import DataError
from lightning_rebasin.files import atomic_write_text


def write_csv(
    path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write a header and rows.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write plain values.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    atomic_write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: str | Path, kind: str) -> dict[str, Any]:
    """Read what :func:`write_json` wrote under ``"format": kind``.

    Raises:
        DataError: The file is missing, is no JSON, or is of another kind.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != kind:
        raise DataError(f"{path} has no 'format': {kind!r}")
    return data


def main_metric(values: Mapping[str, Any], wanted: str | None = None) -> str:
    """The metric that is wanted; by default the first loss, or the first metric if there is none.

    Raises:
        DataError: There is no such metric.

    Example:
        >>> main_metric({"val_acc": (), "val_loss": ()}), main_metric({"acc": ()})
        ('val_loss', 'acc')
    """
    names = list(values)
    if wanted is None and names:
        return next((name for name in names if "loss" in name), names[0])
    if wanted not in names:
        raise DataError(
            f"metric {wanted!r} was not measured; there is {', '.join(names) or 'none'}"
        )
    return wanted
