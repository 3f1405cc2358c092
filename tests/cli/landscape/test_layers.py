"""``landscape layers``: the numbers of layer_barriers, naive and matched, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import Files, one_line, run

from lightning_rebasin.cli.landscape.job import layers_by_hand
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape import LayerBarriers

Capture = pytest.CaptureFixture[str]


def plain(files: Files) -> str:
    return f"--module {files.loaders}.Plain --data {files.loaders}.pair --no-progress"


def test_naive_and_matched(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    """b.ckpt is a.ckpt in another order: after matching no layer makes a barrier."""
    code = run(
        f"landscape layers a.ckpt b.ckpt {plain(files)} --match",
        "--points 3 -o out",
    )
    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "layers.json",
        "layers.csv",
        "layers-matched.json",
        "layers-matched.csv",
        "layers.png",
    }
    matched = LayerBarriers.from_json(tmp_path / "out/layers-matched.json")
    naive = LayerBarriers.from_json(tmp_path / "out/layers.json")
    assert naive.layers == ("net.fc1", "net.fc2")
    for base in "ab":
        assert max(matched.heights()[base]) == pytest.approx(0, abs=1e-3)
        assert max(naive.heights()[base]) > 0.01
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if x.startswith("net.fc2"))
    assert float(line.split()[1]) == pytest.approx(
        naive.heights()["a"][1], abs=1e-4
    )


def test_the_options_are_those_of_the_function(
    files: Files, tmp_path: Path
) -> None:
    code = run(
        f"landscape layers a.ckpt b.ckpt {plain(files)} --points 2 --limit 1",
        "--mode cumulative --order tail,net.fc1 -o out",
        "--layer tail=net.fc2.weight,net.fc2.bias --layer net.fc1=net.fc1",
    )
    assert code == 0
    found = LayerBarriers.from_json(tmp_path / "out/layers.json")
    assert found.layers == ("tail", "+ net.fc1")
    assert (found.mode, found.samples) == ("cumulative", 16)
    assert found.lambdas == (0.0, 0.5, 1.0)


def test_a_plain_network_is_measured_as_a_classifier(
    files: Files, tmp_path: Path
) -> None:
    network = f"--module {files.loaders}.network --data {files.loaders}.pair"
    assert run(f"landscape layers a.ckpt a.ckpt {network} -o out") == 0
    data = json.loads((tmp_path / "out/layers.json").read_text())
    assert set(data["values"]) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.ckpt", "needs 2 checkpoints, got 1"),
        ("a.ckpt b.ckpt --order sideways", "sideways"),
        ("a.ckpt b.ckpt --mode window --width 9", "width=9"),
        ("a.ckpt b.ckpt --layer stem", "NAME=PART"),
        ("a.ckpt b.ckpt --layer stem=conv", "'conv'"),
        ("a.ckpt b.ckpt --metric f1", "'f1'"),
        ("a.ckpt other.ckpt", "other.ckpt"),
    ],
)
def test_what_cannot_work_is_one_line(
    files: Files,
    tmp_path: Path,
    arguments: str,
    message: str,
    capsys: Capture,
) -> None:
    torch.save({"w": torch.zeros(2)}, "other.ckpt")
    code = run(f"landscape layers {arguments} {plain(files)} -o out")
    assert code == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_layers_by_hand() -> None:
    assert layers_by_hand(None) is None
    with pytest.raises(ConfigurationError, match="once"):
        layers_by_hand(["a=b", "a=c"])
