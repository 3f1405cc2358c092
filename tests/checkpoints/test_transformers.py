"""Folders that ``transformers`` wrote are merged into folders that ``transformers`` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hugging_face import small_llama
from torch import Tensor

from lightning_rebasin import infer_spec, merge_checkpoints
from lightning_rebasin.cli.main import main
from lightning_rebasin.symmetry import Permutation

transformers = pytest.importorskip(
    "transformers", reason="needs transformers, to read and write its folders"
)
TOKENS = torch.arange(8)[None]


def gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=16,
        vocab_size=32,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def network() -> Any:
    """What ``--module`` names: the architecture of the folders."""
    return gpt2(0)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A small GPT-2 in five shards with a tied head, and the same network in another order of its hidden units."""
    model = gpt2(0)
    model.save_pretrained(tmp_path / "a", max_shard_size="8KB")
    spec = infer_spec(model, TOKENS)
    moved = Permutation.random(spec, torch.Generator().manual_seed(3))
    model.load_state_dict(moved.apply(model.state_dict()))
    model.save_pretrained(tmp_path / "b", max_shard_size="8KB")
    return [tmp_path / "a", tmp_path / "b"]


def test_a_permuted_copy_merges_to_the_original(
    tmp_path: Path, folders: list[Path]
) -> None:
    merge_checkpoints(
        folders, tmp_path / "merged", module=gpt2(1), example=TOKENS
    )
    merged = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    expected = transformers.GPT2LMHeadModel.from_pretrained(folders[0])
    torch.testing.assert_close(
        logits(merged), logits(expected), rtol=1e-4, atol=1e-5
    )
    written = {p.name for p in (tmp_path / "merged").iterdir()}
    kept = {p.name for p in folders[0].iterdir()}
    assert written == kept | {"lightning_rebasin.json"}
    history = json.loads(
        (tmp_path / "merged/lightning_rebasin.json").read_text()
    )
    assert history["method"] == "weight"


def test_from_the_command_line(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    code = main(
        [
            "merge",
            *map(str, folders),
            "-o",
            str(tmp_path / "merged"),
            "--module",
            "test_transformers.network",
            "--input-shape",
            "1,8",
            "--input-dtype",
            "long",
            "--no-progress",
        ]
    )
    assert code == 0
    merged = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    assert merged.lm_head.weight is merged.transformer.wte.weight


def llama(seed: int) -> Any:
    """A small Llama whose head is the table of its embedding."""
    return small_llama(
        seed,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )


def untied_network() -> Any:
    """What ``--module`` names; its own weights are others than those of the folders."""
    return llama(5)


def test_an_untied_merge_loads_by_its_own_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tie_word_embeddings`` is false in its ``config.json``: it computes what the first model does, untied."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    model = llama(0)
    model.save_pretrained("a")
    expected = logits(model)
    spec = infer_spec(model, TOKENS, kinds="all")
    other = llama(1)
    other.save_pretrained("b")
    # Nothing but the gauge of the first model is left of shares 1 and 0.
    options = (
        "merge a b -o merged --module test_transformers.untied_network --kinds all --untie --share 1 0 "
        "--input-shape 1,8 --input-dtype long --no-progress"
    )
    code = main(options.split())
    assert code == 0
    config = json.loads(Path("merged/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    merged = transformers.LlamaForCausalLM.from_pretrained("merged")
    head, table = merged.lm_head.weight, merged.model.embed_tokens.weight
    assert head is not table
    assert not torch.allclose(head, table)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    canonical = spec.canonicalise(model.state_dict(), untie=True)
    torch.testing.assert_close(head, canonical.state["lm_head.weight"])
    history = json.loads(Path("merged/lightning_rebasin.json").read_text())
    assert history["untied"] == ["lm_head.weight"]
