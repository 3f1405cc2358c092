"""A Hugging Face folder says itself what network it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.hugging_face import small_llama

from lightning_rebasin import infer_spec, merge_checkpoints
from lightning_rebasin.checkpoints.architecture import (
    describes_network,
    network_of_folder,
)
from lightning_rebasin.cli.main import main
from lightning_rebasin.errors import ConfigurationError, MissingExtraError
from lightning_rebasin.symmetry import Permutation
from lightning_rebasin.symmetry.run.hollow import is_hollow

transformers = pytest.importorskip(
    "transformers", reason="builds the networks of its folders"
)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A small Llama, and the same network in another order."""
    model = small_llama()
    model.save_pretrained(tmp_path / "a")
    spec = infer_spec(model, torch.arange(8)[None])
    moved = Permutation.random(spec, torch.Generator().manual_seed(3))
    model.load_state_dict(moved.apply(model.state_dict()))
    model.save_pretrained(tmp_path / "b")
    return [tmp_path / "a", tmp_path / "b"]


def configure(folder: Path, **change: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def same(a: Path, b: Path) -> bool:
    one, two = (
        transformers.LlamaForCausalLM.from_pretrained(p).state_dict()
        for p in (a, b)
    )
    return all(torch.allclose(one[n], two[n], atol=1e-6) for n in one)


def test_no_module_is_needed(folders: list[Path], tmp_path: Path) -> None:
    report = merge_checkpoints(folders, tmp_path / "out")
    # Not only was the spec inferred: the permuted network was run.
    assert report.errors[0] < 1e-12
    assert same(tmp_path / "a", tmp_path / "out")


def test_from_the_command_line(folders: list[Path], tmp_path: Path) -> None:
    paths = [str(path) for path in folders]
    quiet = "--no-progress"
    assert main(["merge", *paths, "-o", str(tmp_path / "out"), quiet]) == 0
    assert same(tmp_path / "a", tmp_path / "out")
    assert main(["match", *paths, "-o", str(tmp_path / "p.perm"), quiet]) == 0
    found = Permutation.load(tmp_path / "p.perm")
    spec = infer_spec(small_llama(), torch.arange(8)[None])
    moved = Permutation.random(spec, torch.Generator().manual_seed(3))
    assert found == moved.inverse()


def test_other_kinds_have_weights_to_be_proved_with(
    folders: list[Path], tmp_path: Path
) -> None:
    report = merge_checkpoints(folders, tmp_path / "out", kinds="all")
    assert report.spec is not None
    assert {g.kind for g in report.spec.groups.values()} > {"permutation"}


def test_hollow_in_the_precision_of_the_folder(folders: list[Path]) -> None:
    configure(folders[0], dtype="bfloat16")
    network = network_of_folder(folders[0], hollow=True)
    for parameter in network.parameters():
        assert is_hollow(parameter) and parameter.dtype == torch.bfloat16
    assert not any(map(is_hollow, network_of_folder(folders[0]).parameters()))
    # The rotary table is no part of the state, and is there.
    assert float(network.model.rotary_emb.inv_freq.sum()) > 0  # type: ignore[union-attr,operator]


def test_what_reads_no_text_has_no_example(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    network = network_of_folder(tmp_path / "vit")
    assert getattr(network, "example_input_array", None) is None


def test_a_text_for_both_sides(tmp_path: Path) -> None:
    config = transformers.T5Config(
        d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, vocab_size=32
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(
        tmp_path / "t5"
    )
    network = network_of_folder(tmp_path / "t5", hollow=True)
    assert infer_spec(network).groups


def test_folders_that_do_not_say_it(folders: list[Path]) -> None:
    assert describes_network(folders[0])
    configure(folders[0], architectures=None)
    assert not describes_network(folders[0])
    assert not describes_network(folders[0].parent)
    with pytest.raises(ConfigurationError, match="does not say which class"):
        network_of_folder(folders[0])
    with pytest.raises(ConfigurationError, match="needs to know what may be"):
        merge_checkpoints(folders, folders[0].parent / "out")


@pytest.mark.parametrize("name", ["TheirOwnModel", "logging", "AutoConfig"])
def test_code_that_a_folder_brings_along_is_not_run(
    folders: list[Path], name: str
) -> None:
    (folders[0] / "own.py").write_text("raise SystemExit('run')")
    configure(
        folders[0],
        architectures=[name],
        auto_map={"AutoModelForCausalLM": "own.TheirOwnModel"},
    )
    with pytest.raises(ConfigurationError, match="does not have"):
        network_of_folder(folders[0])


def test_a_configuration_that_builds_nothing(folders: list[Path]) -> None:
    configure(folders[0], num_attention_heads="many")
    with pytest.raises(ConfigurationError, match="cannot build a LlamaFor"):
        network_of_folder(folders[0])


def test_without_transformers(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="pip install transformers"):
        network_of_folder(folders[0])
