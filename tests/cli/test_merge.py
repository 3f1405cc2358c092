"""The ``merge`` command writes one working checkpoint, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.commands import MODULE, Files, half_written, one_line, run

from lightning_rebasin.symmetry import infer_spec

Capture = pytest.CaptureFixture[str]
MERGE = "merge a.ckpt b.ckpt -o out.ckpt"


def test_merge_from_lightning_files(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    code = run(
        f"{MERGE} --module {MODULE} --data {files.loaders}.pair",
        "--method weight --statistics none --report r.json",
    )
    out, err = capsys.readouterr()
    assert code == 0
    assert "same function" in out
    assert "wrote out.ckpt" in out
    assert "reading" in err  # progress
    payload = torch.load("out.ckpt", weights_only=True)
    assert payload["hyper_parameters"] == {"hidden": 6, "batch_norm": True}
    for key, tensor in payload["state_dict"].items():
        torch.testing.assert_close(tensor, files.state[key])
    evaluation = json.loads((tmp_path / "r.json").read_text())["evaluation"]
    assert set(evaluation) == {
        "a.ckpt",
        "b.ckpt",
        "naive average",
        "merged",
        "ensemble",
    }
    assert evaluation["merged"]["val_loss"] == pytest.approx(
        evaluation["a.ckpt"]["val_loss"], rel=1e-4
    )
    assert "dropped: hyper_parameters.x" in out


def test_a_report_that_cannot_be_written_stops_the_merge(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    code = run(f"{MERGE} --module {MODULE} --report nowhere/r.json")
    assert code == 2
    assert "the folder nowhere does not exist" in one_line(capsys)
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize("data", ["pair", "Blobs"])
def test_statistics_from_a_function_or_a_data_module(
    files: Files, data: str, capsys: Capture
) -> None:
    code = run(
        f"{MERGE} --module {MODULE} --data {files.loaders}.{data}",
        "--no-progress --statistics repair --batches 2",
    )
    assert code == 0
    out, err = capsys.readouterr()
    assert "variance of the activations" in out
    assert err == ""


def test_a_spec_needs_no_model_code(files: Files, capsys: Capture) -> None:
    infer_spec(Classifier(hidden=6, batch_norm=True)).save("spec.json")
    code = run(
        "merge a.ckpt b.ckpt -o out.safetensors --spec spec.json --no-progress"
    )
    assert code == 0
    assert "not proved" in capsys.readouterr().out
    assert run("merge a.ckpt b.ckpt -o o.ckpt --spec a.ckpt") == 2
    assert "cannot read a permutation spec from a.ckpt" in one_line(capsys)


def test_dry_run_and_force(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    average = f"{MERGE} --method average --no-progress"
    before = {p.name for p in tmp_path.iterdir()}
    assert run(average, "--dry-run") == 0
    assert "dry run" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == before
    (tmp_path / "out.ckpt").write_text("mine")
    assert run(average) == 2
    assert "--force" in one_line(capsys)
    assert run(average, "--force") == 0


def test_one_file_rewritten_needs_no_advice(
    files: Files, capsys: Capture
) -> None:
    code = run("merge a.ckpt -o a.safetensors --method none --no-progress")
    assert code == 0
    out = capsys.readouterr().out
    assert out.startswith("1 model, method none")
    assert "no data" not in out


def test_killed_while_writing_leaves_no_broken_output(
    files: Files, tmp_path: Path
) -> None:
    old = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "out.ckpt").write_bytes(old)
    process = half_written(tmp_path, f"{MERGE} --method average --force")
    process.kill()
    process.communicate(timeout=120)
    assert (tmp_path / "out.ckpt").read_bytes() == old


@pytest.mark.parametrize(
    ("option", "warning"),
    [
        ("--share 0.25 0.75", ""),
        (
            "--weight 0.25 0.75",
            "warning: --weight is called --share now\n",
        ),
    ],
)
def test_shares_weigh_the_models(
    files: Files, option: str, warning: str, capsys: Capture
) -> None:
    assert run(f"{MERGE} --method average --no-progress", option) == 0
    assert capsys.readouterr().err == warning
    b = torch.load("b.ckpt", weights_only=False)["state_dict"]
    merged = torch.load("out.ckpt", weights_only=True)["state_dict"]
    for name in ("net.fc1.weight", "net.fc1.bias", "net.fc2.weight"):
        expected = 0.25 * files.state[name] + 0.75 * b[name]
        torch.testing.assert_close(merged[name], expected)
