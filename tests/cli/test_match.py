"""The ``match`` command finds the order in which one checkpoint was shuffled, and writes that alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.commands import MODULE, Files, one_line, run

from lightning_rebasin.symmetry import Permutation, infer_spec

Capture = pytest.CaptureFixture[str]
MATCH = "match a.ckpt b.ckpt -o p.perm --no-progress"


def assert_undoes_the_shuffle(files: Files) -> None:
    """The written permutation makes b.ckpt, a shuffled copy of a.ckpt, equal to it."""
    b = torch.load("b.ckpt", weights_only=False)["state_dict"]
    found = Permutation.load(Path("p.perm")).apply(b)
    assert not torch.equal(b["net.fc1.weight"], found["net.fc1.weight"])
    for name, tensor in files.state.items():
        assert torch.equal(found[name], tensor), name


def test_weights_give_the_planted_order(files: Files, capsys: Capture) -> None:
    assert run(MATCH, f"--module {MODULE}") == 0
    assert "same function: relative error" in capsys.readouterr().out
    assert_undoes_the_shuffle(files)


def test_activations_give_the_planted_order(
    files: Files, capsys: Capture
) -> None:
    data = f"--data {files.loaders}.pair --method activation"
    assert run(MATCH, f"--module {MODULE}", data) == 0
    assert "same function: relative error" in capsys.readouterr().out
    assert_undoes_the_shuffle(files)


def test_a_spec_is_enough_but_proves_nothing(
    files: Files, capsys: Capture
) -> None:
    infer_spec(Classifier(hidden=6, batch_norm=True)).save("spec.json")
    assert run(MATCH, "--spec spec.json") == 0
    assert "not checked: no --module" in capsys.readouterr().out
    assert_undoes_the_shuffle(files)


def test_the_report_counts_the_moved_units(
    files: Files, tmp_path: Path
) -> None:
    assert run(MATCH, f"--module {MODULE} --report r.json") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    b = torch.load("b.ckpt", weights_only=False)["state_dict"]
    rows = zip(files.state["net.fc1.weight"], b["net.fc1.weight"], strict=True)
    moved = sum(not torch.equal(mine, theirs) for mine, theirs in rows) / 6
    assert report["moved_fraction"] == pytest.approx(moved)
    assert report["groups"]["net.fc1"]["size"] == 6
    assert report["cosine"] == pytest.approx(1)
    assert len(report["equivalence_errors"]) == 1
    assert report["equivalence_errors"][0] < 1e-6


def test_without_a_network_it_asks_for_one(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    assert run(MATCH) == 2
    assert "--module, --config or --spec" in one_line(capsys)
    assert not (tmp_path / "p.perm").exists()


def test_activations_without_data_are_refused(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    assert run(MATCH, f"--module {MODULE} --method activation") == 2
    assert "--data" in one_line(capsys)
    assert not (tmp_path / "p.perm").exists()


def test_a_nan_is_found_before_matching(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    broken = {n: t.clone() for n, t in files.state.items()}
    broken["net.fc1.bias"][2] = torch.nan
    torch.save(broken, "nan.pt")
    command = "match a.ckpt nan.pt -o p.perm --no-progress"
    assert run(command, f"--module {MODULE}") == 2
    line = one_line(capsys)
    assert "nan.pt" in line
    assert "net.fc1.bias" in line
    assert not (tmp_path / "p.perm").exists()
