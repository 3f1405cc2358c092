"""Tensors that a file may lack: tied ones, and buffers that nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin import infer_spec, merge_checkpoints
from lightning_rebasin.checkpoints.fallbacks import Fallbacks, fallbacks_of
from lightning_rebasin.errors import StateDictError


class Tied(nn.Module):
    """A tied head, a table that nothing changes, a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.back = nn.Linear(6, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.linspace(0, 1, 7))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.hidden(self.embedding(tokens))))
        logits: Tensor = self.head(self.back(hidden)) + self.table
        return logits


TOKENS = torch.arange(5)
LACKING = ("table", "head.weight")


def files(folder: Path, lacking: tuple[str, ...] = LACKING) -> list[Path]:
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = Tied().state_dict()
        paths.append(folder / f"{seed}.pt")
        torch.save(
            {n: t for n, t in state.items() if n not in lacking}, paths[-1]
        )
    return paths


def test_what_may_be_missing() -> None:
    net = Tied()
    spec = infer_spec(net, TOKENS)
    found = fallbacks_of(net, spec)
    assert found.names == {"embedding.weight", "head.weight", "table"}
    assert torch.equal(found.values["table"], net.table)


class Shifted(nn.Module):
    """A table that is added to hidden units moves along with them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 6)
        self.out = nn.Linear(6, 2)
        self.register_buffer("table", torch.rand(6))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.relu(self.hidden(inputs) + self.table))
        return logits


def test_a_buffer_that_a_symmetry_moves_must_be_there() -> None:
    net = Shifted()
    spec = infer_spec(net, torch.zeros(1, 3))
    assert "table" in spec.maps
    assert fallbacks_of(net, spec).names == set()
    assert fallbacks_of(net, None).names == {"table"}


def test_buffers_that_a_training_changes_must_be_there() -> None:
    running = {
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    assert not running & fallbacks_of(Tied(), None).names


def test_without_a_network_only_tied_weights_may_be_missing() -> None:
    spec = infer_spec(Tied(), TOKENS)
    assert fallbacks_of(None, spec).names == {
        "embedding.weight",
        "head.weight",
    }
    assert fallbacks_of(None, None).names == set()


@pytest.mark.parametrize("method", ["weight", "average"])
def test_files_without_them_merge_and_the_report_says_so(
    tmp_path: Path, method: str
) -> None:
    report = merge_checkpoints(
        files(tmp_path),
        tmp_path / "out.pt",
        module=Tied(),
        example=TOKENS,
        method=method,
    )
    assert report.inputs[0].filled == LACKING
    assert "lacks table, head.weight" in str(report)
    whole = merge_checkpoints(
        files(tmp_path, ()),
        tmp_path / "whole.pt",
        module=Tied(),
        example=TOKENS,
        method=method,
    )
    assert whole.inputs[0].filled == ()
    merged = torch.load(tmp_path / "out.pt", weights_only=True)
    expected = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert list(merged) == [n for n in expected if n not in LACKING]
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name])


def test_a_file_without_running_statistics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateDictError, match=r"lacks 'norm\.running_var'"):
        merge_checkpoints(
            files(tmp_path, ("norm.running_var",)),
            tmp_path / "out.pt",
            module=Tied(),
            example=TOKENS,
        )


def test_a_tied_weight_without_any_of_its_names_is_refused(
    tmp_path: Path,
) -> None:
    lacking = ("embedding.weight", "head.weight")
    with pytest.raises(StateDictError, match=r"embedding\.weight"):
        merge_checkpoints(
            files(tmp_path, lacking),
            tmp_path / "out.pt",
            module=Tied(),
            example=TOKENS,
        )


def test_the_other_name_may_be_the_one_that_is_there() -> None:
    pair = ("embedding", "head")
    fallbacks = Fallbacks(dict.fromkeys(pair, pair))
    ones = torch.ones(2)
    assert fallbacks.fill({"head": ones}, pair) == {"embedding": ones}
