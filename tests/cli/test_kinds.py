"""The commands with ``--kinds all`` on a tiny transformer that was turned by a random element."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.commands import one_line, run
from helpers.kinds import LENGTH, VOCABULARY, Transformer
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin import infer_spec, merge_checkpoints
from lightning_rebasin.landscape import LayerBarriers
from lightning_rebasin.symmetry import Transform

Capture = pytest.CaptureFixture[str]
MODULE = "--module test_kinds.Language --kinds all"


class Language(LightningModule):
    """A transformer that knows its example."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer()
        tokens = torch.arange(2 * LENGTH).remainder(VOCABULARY)
        self.example_input_array = tokens.reshape(2, LENGTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self(batch[0])[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(
            logits, batch[0][:, 1:].flatten()
        )
        self.log("val_loss", loss)


Loader = DataLoader[tuple[Tensor, ...]]


def windows() -> tuple[Loader, Loader]:
    """Random tokens to train and to validate on."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (32, LENGTH), generator=generator)
    loader = DataLoader(TensorDataset(tokens), batch_size=16)
    return loader, loader


@pytest.fixture
def state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """The canonical weights of a.ckpt; b.ckpt is a turned copy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.manual_seed(0)
    net = Language()
    spec = infer_spec(net, net.example_input_array, kinds="all")
    found = spec.canonicalise(net.state_dict())
    element = Transform.random(spec, torch.Generator().manual_seed(1))
    common = {"pytorch-lightning_version": "2.6.6", "hyper_parameters": {}}
    torch.save({**common, "state_dict": found}, "a.ckpt")
    torch.save({**common, "state_dict": element.apply(found)}, "b.ckpt")
    return found


@pytest.mark.usefixtures("state")
def test_layers_of_a_turned_copy_mix_without_a_barrier(tmp_path: Path) -> None:
    """The gain of the last norm takes a out of canonical gauge, without a change of its function."""
    stored = torch.load("a.ckpt", weights_only=True)
    stored["state_dict"]["net.norm.weight"] *= 3
    stored["state_dict"]["net.norm.bias"] *= 3
    stored["state_dict"]["net.head.weight"] /= 3
    torch.save(stored, "a.ckpt")
    data = "--data test_kinds.windows --no-progress"
    code = run(
        f"landscape layers a.ckpt b.ckpt {MODULE} {data} --match -o out",
        "--points 3",
    )
    assert code == 0
    matched = LayerBarriers.from_json(tmp_path / "out/layers-matched.json")
    naive = LayerBarriers.from_json(tmp_path / "out/layers.json")
    for base in "ab":
        assert max(matched.heights()[base]) == pytest.approx(0, abs=1e-4)
        assert max(naive.heights()[base]) > 0.01


def test_spec_names_the_kinds(
    state: dict[str, Tensor], capsys: Capture
) -> None:
    assert run("spec", MODULE, "-o s.json") == 0
    printed = capsys.readouterr().out
    assert "orthogonal_mean" in printed
    assert "linear" in printed


def test_match_recovers_the_element(state: dict[str, Tensor]) -> None:
    assert run("match a.ckpt b.ckpt -o p.perm --no-progress", MODULE) == 0
    b = torch.load("b.ckpt", weights_only=False)["state_dict"]
    aligned = Transform.load("p.perm").apply(b)
    for key, tensor in state.items():
        torch.testing.assert_close(aligned[key], tensor, rtol=0, atol=1e-4)


def test_barrier_matches_over_all_kinds(
    state: dict[str, Tensor], capsys: Capture
) -> None:
    """Half way to the turned copy the loss is that of the ends; without matching it is another."""
    arguments = "barrier a.ckpt b.ckpt --data test_kinds.windows --points 3"
    assert run(arguments, MODULE, "--match -o b.csv --no-progress") == 0
    with Path("b.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    naive, matched = (
        [float(row[f"{label}_val_loss"]) for row in rows]
        for label in ("naive", "matched")
    )
    assert matched == pytest.approx([matched[0]] * 3, abs=1e-5)
    assert abs(naive[1] - naive[0]) > 0.01


@pytest.mark.parametrize("name", ["p.perm", "p.safetensors"])
def test_apply_reads_what_match_wrote(
    state: dict[str, Tensor], name: str, capsys: Capture
) -> None:
    assert run(f"match a.ckpt b.ckpt -o {name} --no-progress", MODULE) == 0
    module = "--module test_kinds.Language"
    assert run(f"apply {name} b.ckpt -o c.ckpt", module) == 0
    assert "same function" in capsys.readouterr().out
    written = torch.load("c.ckpt", weights_only=True)
    for key, tensor in state.items():
        found = written["state_dict"][key]
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-4)
    assert "orthogonal_mean" in written["lightning_rebasin"]["kinds"]
    # And back again: the turned copy.
    assert run(f"apply {name} c.ckpt -o d.ckpt --inverse", module) == 0
    turned = torch.load("b.ckpt", weights_only=False)["state_dict"]
    back = torch.load("d.ckpt", weights_only=True)["state_dict"]
    for key, tensor in turned.items():
        torch.testing.assert_close(back[key], tensor, rtol=0, atol=1e-4)


def test_apply_names_a_damaged_file(
    state: dict[str, Tensor], capsys: Capture
) -> None:
    Path("p.safetensors").write_bytes(b"\0" * 8 + b"{")
    assert run("apply p.safetensors b.ckpt -o c.ckpt") == 2
    assert "p.safetensors" in one_line(capsys)
    assert not Path("c.ckpt").exists()


def test_merge_gives_the_weights_back(state: dict[str, Tensor]) -> None:
    assert (
        run(
            "merge a.ckpt b.ckpt -o m.ckpt --report r.json --no-progress",
            MODULE,
        )
        == 0
    )
    merged = torch.load("m.ckpt", weights_only=False)
    Language().load_state_dict(merged["state_dict"], strict=True)
    for key, tensor in state.items():
        found = merged["state_dict"][key]
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-4)
    assert json.loads(Path("r.json").read_text())
    kinds = merged["lightning_rebasin"]["kinds"]
    assert kinds == ["linear", "orthogonal_mean", "permutation"]


def test_a_spec_of_all_kinds_merges(state: dict[str, Tensor]) -> None:
    net = Language()
    spec = infer_spec(net, net.example_input_array, kinds="all")
    merge_checkpoints(["a.ckpt", "b.ckpt"], "m.ckpt", spec=spec)
    merged = torch.load("m.ckpt", weights_only=False)["state_dict"]
    net.load_state_dict(merged, strict=True)
    for key, tensor in state.items():
        torch.testing.assert_close(merged[key], tensor, rtol=0, atol=1e-4)


def test_heads_side_by_side_go_with_permutations_only(
    state: dict[str, Tensor], capsys: Capture
) -> None:
    assert (
        run(
            "merge a.ckpt b.ckpt -o m.ckpt --heads concatenate --no-progress",
            MODULE,
        )
        == 2
    )
    assert "permutations only" in one_line(capsys)
    assert not Path("m.ckpt").exists()


def test_an_unknown_kind_is_named(
    state: dict[str, Tensor], capsys: Capture
) -> None:
    assert run("spec --module test_kinds.Language --kinds turns") == 2
    assert "'turns'" in one_line(capsys)
