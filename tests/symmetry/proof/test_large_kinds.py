"""Kinds beyond permutation are proved for large models too, whose weights stay in their own precision."""

from __future__ import annotations

import pytest
from helpers.streams import IDS, Stream, kind_of, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry.proof import kinds, sandbox


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kinds, sandbox):
        monkeypatch.setattr(module, "LARGE", 1)


def test_a_stream_turns_in_single_precision() -> None:
    """Its elements are rounded, so that outputs agree to 1e-6 and not to 1e-12."""
    spec = infer_spec(randomised(Stream()).float(), IDS, kinds="all")
    assert kind_of(spec, "up.weight", 1) == "orthogonal_mean"


class Pointwise(Stream):
    """What the analysis cannot see is still refused."""

    def block(self, h: Tensor) -> Tensor:
        found: Tensor = self.down(F.gelu(self.up(h))) + 0.05 * h.tanh()
        return found


def test_a_trap_is_still_refused() -> None:
    spec = infer_spec(randomised(Pointwise()).float(), IDS, kinds="all")
    assert not kind_of(spec, "up.weight", 1).startswith("orthogonal")


def test_below_that_size_weights_are_widened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only permutations are proved in their own precision there, because they round nothing."""
    seen: list[bool] = []

    class Watched(sandbox.Sandbox):  # type: ignore[misc]  # final: only its options are looked at
        def __init__(self, module: nn.Module, **options: bool) -> None:
            super().__init__(module, **options)
            seen.append(self.narrow)

    monkeypatch.setattr(kinds, "LARGE", 2**40)
    monkeypatch.setattr(kinds, "Sandbox", Watched)
    infer_spec(randomised(Stream()).float(), IDS, kinds="all")
    assert seen == [False]
