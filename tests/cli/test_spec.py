"""The ``spec`` command prints a proved spec, writes it whole or not at all, and names the option that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import assert_spec_refuses, run_spec

from lightning_rebasin.errors import (
    ConfigurationError,
    EquivalenceError,
    OutputError,
    RebasinError,
    SpecError,
)
from lightning_rebasin.symmetry import PermutationSpec

Capture = pytest.CaptureFixture[str]
TOWER = "--module helpers.towers.Tower --input-shape 2,3"


def test_prints_table_explains_proves_and_writes(
    tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "spec.json"
    code = run_spec(
        TOWER,
        "--init-args '{\"width\": 9}' --explain head.weight",
        f"--output {target}",
    )
    assert code == 0
    out = capsys.readouterr().out
    assert "acts on (tensor[dimension])" in out
    assert "head.weight: parameter (2, 4)" in out
    assert "proved: a random permutation" in out
    assert f"wrote {target}" in out
    spec = PermutationSpec.load(target)
    assert sorted(g.size for g in spec.groups.values()) == [4, 9]


def test_no_check_and_pin(capsys: Capture) -> None:
    assert run_spec(TOWER, "--no-check --pin head.weight") == 0
    out = capsys.readouterr().out
    assert "proved" not in out
    assert "pinned by the user" in out
    assert "1 group;" in out


def test_data_give_the_example(capsys: Capture) -> None:
    stepwise = "--module helpers.towers.Stepwise"
    assert run_spec(stepwise, "--data helpers.towers.batches") == 0
    out = capsys.readouterr().out
    assert "1 group" in out
    assert "proved" in out
    with pytest.raises(ConfigurationError, match="--data"):
        run_spec(stepwise)


def test_same_seed_same_output(capsys: Capture) -> None:
    run_spec(TOWER, "--seed 3")
    first = capsys.readouterr().out
    run_spec(TOWER, "--seed 3")
    assert capsys.readouterr().out == first


BAD: list[tuple[str, type[RebasinError], str]] = [
    (
        f"{TOWER} --explain head.wieght",
        SpecError,
        "did you mean 'head.weight'",
    ),
    (f"{TOWER} --pin nothing", SpecError, "no tensor 'nothing'"),
    (
        "--module helpers.towers.Dead --input-shape 2,3",
        EquivalenceError,
        "blind",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_requests_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    error: type[RebasinError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_spec_refuses(tmp_path, arguments, error, message)


def test_unwritable_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        run_spec(TOWER, f"--output {tmp_path}/nowhere/spec.json")


def test_written_file_is_plain_json(tmp_path: Path) -> None:
    target = tmp_path / "spec.json"
    run_spec(TOWER, f"-o {target}")
    content = json.loads(target.read_text())
    assert content["format"] == "lightning-rebasin-spec"


def test_an_existing_file_is_overwritten_only_by_force(tmp_path: Path) -> None:
    target = tmp_path / "spec.json"
    target.write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        run_spec(TOWER, f"-o {target}")
    assert target.read_text() == "mine"
    assert run_spec(TOWER, f"-o {target} --force") == 0
    assert target.read_text() != "mine"
