"""What the stages share: files are read once, and batches are kept only where every pass has to give the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import mlp, randomise
from torch import nn

from lightning_rebasin import infer_spec, untie
from lightning_rebasin.checkpoints import inputs, job, merge_checkpoints
from lightning_rebasin.errors import ConfigurationError

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for seed in range(2):
        path = tmp_path / f"{seed}.pt"
        torch.save(randomise(mlp(6, 8, 3), seed).state_dict(), path)
        found.append(path)
    return found


@pytest.mark.parametrize("heads", ["average", "concatenate"])
def test_files_are_read_once(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, heads: str
) -> None:
    read: list[Any] = []
    original = inputs.read_inputs

    def counted(*args: Any, **kwargs: Any) -> Any:
        read.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(job, "read_inputs", counted)
    merge_checkpoints(
        paths,
        paths[0].with_name("out.pt"),
        module=mlp(6, 8, 3),
        data=list(X.split(8)),
        heads=heads,
    )
    assert len(read) == 1


class Passes:
    """Batches that count how often they are gone through."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.count += 1
        return iter(X.split(8))


def test_batches_are_kept_only_to_compare_ways_to_merge(
    paths: list[Path],
) -> None:
    def merged(**options: str) -> int:
        batches = Passes()
        merge_checkpoints(
            paths,
            paths[0].with_name("out.pt"),
            module=mlp(6, 8, 3),
            data=batches,
            force=True,
            **options,
        )
        return batches.count

    assert merged() == 1
    assert merged(method="weight", statistics="repair") > 1


class Tied(nn.Module):
    """An embedding, a norm with a gain, and a head that is the embedding's table."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.norm = nn.RMSNorm(6)
        self.head = nn.Linear(6, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(self.embed(ids)))
        return found


IDS = torch.arange(7)[None]


@pytest.fixture
def tied(tmp_path: Path) -> list[Path]:
    """Two tied networks, in files of scripts that put their own prefix in front; the second lacks the second name."""
    found = []
    for seed in range(2):
        net = randomise(Tied(), seed)
        state = {f"net.{name}": t for name, t in net.state_dict().items()}
        if seed == 1:
            del state["net.head.weight"]
        path = tmp_path / f"{seed}.pt"
        torch.save(state, path)
        found.append(path)
    return found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("known", ["module", "spec"])
def test_an_untied_merge_has_both_tensors_and_says_so(
    tied: list[Path], known: str, reverse: bool
) -> None:
    if reverse:
        tied = tied[::-1]
    net = randomise(Tied(), 9)
    spec = infer_spec(net, IDS, kinds="all")
    given: dict[str, Any] = {"spec": spec}
    if known == "module":
        given = {"module": net, "example": IDS, "kinds": "all"}
    out = tied[0].with_name("out.pt")
    report = merge_checkpoints(tied, out, shares=(1, 0), untie=True, **given)
    assert report.untied == ("head.weight",)
    assert report.to_dict()["untied"] == ["head.weight"]
    assert "lightning_rebasin.untie(module, ['head.weight'])" in str(report)
    written = torch.load(out, weights_only=True)
    state = {n.removeprefix("net."): t for n, t in written.items()}
    assert not torch.allclose(state["head.weight"], state["embed.weight"])
    free = untie(randomise(Tied(), 9), report.untied)
    free.load_state_dict(state, strict=True)
    first = torch.load(tied[0], weights_only=True)
    own = {n.removeprefix("net."): t for n, t in first.items()}
    original = Tied()
    original.load_state_dict({"head.weight": own["embed.weight"], **own})
    torch.testing.assert_close(free(IDS), original(IDS))
    # The network that was given is still tied.
    assert net.head.weight is net.embed.weight


def test_a_tied_merge_stays_tied_and_says_what_untying_would_allow(
    tied: list[Path],
) -> None:
    report = merge_checkpoints(
        tied,
        tied[0].with_name("out.pt"),
        module=Tied(),
        example=IDS,
        kinds="all",
    )
    assert report.untied == ()
    assert "--untie" in "\n".join(report.advice)
    written = torch.load(report.output, weights_only=True)
    assert torch.equal(written["net.head.weight"], written["net.embed.weight"])


def test_untying_where_nothing_is_tied_is_refused(paths: list[Path]) -> None:
    with pytest.raises(ConfigurationError, match="--untie"):
        merge_checkpoints(
            paths,
            paths[0].with_name("out.pt"),
            module=mlp(6, 8, 3),
            example=X,
            kinds="all",
            untie=True,
        )
    assert not paths[0].with_name("out.pt").exists()
