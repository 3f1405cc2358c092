"""The LightningCLI of examples/merge_module, in a folder of its own."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "merge_module"
#: Modules of the example; other examples have modules of these names, too.
NAMES = ("main", "data", "networks")
_QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
)


def example_cli(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Work in a folder; returns what runs ``python main.py fit --config NAME ...``.

    Args:
        folder: Where files are written.
        monkeypatch: Undoes everything.
    """
    pytest.importorskip(
        "sklearn", reason="the example's data come with scikit-learn"
    )
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    cli = functools.partial(
        importlib.import_module("main").MergeCLI,
        save_config_kwargs={"overwrite": True},
    )

    def fit(config: str, *arguments: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = [f"--config={FOLDER / config}", *arguments, *_QUIET]
            return cli(args=["fit", *given])

    return fit


def train_ends(fit: Callable[..., Any], epochs: int) -> None:
    """Write ends/a.ckpt and ends/b.ckpt."""
    for seed, name in ((1, "a"), (2, "b")):
        fit(
            "train.yaml",
            f"--seed_everything={seed}",
            f"--trainer.callbacks.filename={name}",
            f"--trainer.max_epochs={epochs}",
        )
