"""The two ends of the segment: read, checked, placed, mixed and written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.merging import State, fit, make
from torch import Tensor, nn

from lightning_rebasin.errors import (
    CheckpointError,
    NonFiniteError,
    StateDictError,
)
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def test_weights_and_spec_may_be_files(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{name}.ckpt" for name in "ab"]
    for path, state in zip(paths, ends, strict=True):
        torch.save(
            {"state_dict": state, "pytorch-lightning_version": "2.6.6"}, path
        )
    given = make(ends)
    fit(given, tmp_path)
    given.spec.save(tmp_path / "spec.json")
    module = make((str(paths[0]), paths[1]), spec=tmp_path / "spec.json")
    fit(module, tmp_path)
    assert module.permutation == given.permutation


def test_weights_that_do_not_fit_are_named(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    with pytest.raises(StateDictError, match=r"net\.fc1\.weight"):
        make(
            (
                ends[0],
                {n: t for n, t in ends[1].items() if n != "net.fc1.weight"},
            )
        )
    broken = {
        n: torch.full_like(t, torch.nan) if n == "net.fc1.bias" else t
        for n, t in ends[1].items()
    }
    with pytest.raises(NonFiniteError, match=r"net\.fc1\.bias"):
        fit(make((ends[0], broken)), tmp_path)


class Small(nn.Module):
    """A weight, a tied name of it, a floating-point buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 2, bias=False)
        self.again = self.first
        self.register_buffer("scale", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    count: Tensor


def state(values: list[float], scale: list[float], count: int) -> State:
    weight = torch.tensor(values)[:, None]
    return {
        "first.weight": weight,
        "again.weight": weight,
        "scale": torch.tensor(scale),
        "count": torch.tensor(count),
    }


def small_ends() -> tuple[Endpoints, Permutation]:
    """Two ends and the swap of the two units."""
    a = state([0.0, 4.0], [1.0, 1.0], 3)
    b = state([8.0, 0.0], [5.0, 9.0], 7)
    table = {
        "first.weight": ("h", None),
        "again.weight": ("h", None),
        "scale": ("h",),
    }
    spec = PermutationSpec.from_table(table, a)
    swap = Permutation(spec, {"h": torch.tensor([1, 0])})
    return Endpoints(Small(), a, b), swap


def test_the_midpoint_mixes_the_reference_with_the_permuted_source() -> None:
    ends, swap = small_ends()
    mixed = ends.midpoint(swap, 0.25)
    # The source becomes [0, 8]: 3/4·[0, 4] + 1/4·[0, 8]; scales 3/4 + [9, 5]/4.
    assert mixed["first.weight"].flatten().tolist() == [0.0, 5.0]
    assert mixed["scale"].tolist() == [3.0, 2.0]
    # A counter has no midpoint: it is that of the nearer end.
    assert int(mixed["count"]) == 3
    assert int(ends.midpoint(swap, 0.75)["count"]) == 7


def test_buffers_of_a_point_are_fresh_and_hold_no_parameters() -> None:
    ends, swap = small_ends()
    found = ends.buffers(swap, 0.25)
    assert found.keys() == {"scale", "count"}
    assert found["scale"].tolist() == [3.0, 2.0]
    for tensor in found.values():
        tensor.fill_(100)
    assert ends.buffers(swap, 0.25)["scale"].tolist() == [3.0, 2.0]
    assert ends.reference["scale"].tolist() == [1.0, 1.0]


def test_the_aligned_source_is_kept_for_the_permutation_in_use() -> None:
    ends, swap = small_ends()
    first = ends.align(swap)
    assert first["first.weight"].flatten().tolist() == [0.0, 8.0]
    assert ends.align(swap) is first
    other = ends.align(Permutation.identity(swap.spec))
    assert other["first.weight"].flatten().tolist() == [8.0, 0.0]
    assert ends.align(swap)["scale"].tolist() == [9.0, 5.0]


def test_placing_moves_both_ends_and_forgets_what_was_aligned() -> None:
    ends, swap = small_ends()
    assert ends.align(swap)["scale"].dtype == torch.float32
    ends.place(Small().double())
    for weights in (ends.reference, ends.source, ends.align(swap)):
        assert weights["first.weight"].dtype == torch.float64
        assert weights["scale"].dtype == torch.float64
        assert weights["count"].dtype == torch.int64


def test_the_ends_are_copies_and_so_is_what_is_written() -> None:
    a, b = state([1.0, 2.0], [0.0, 0.0], 0), state([3.0, 4.0], [1.0, 1.0], 1)
    model = Small()
    ends = Endpoints(model, a, b)
    for tensor in (*a.values(), *b.values()):
        tensor.fill_(-1)
    assert ends.write_source(model) is model
    assert model.first.weight.flatten().tolist() == [3.0, 4.0]
    assert int(model.count) == 1
    with torch.no_grad():
        model.first.weight.fill_(-1.0)
    assert ends.write_reference(model) is model
    assert model.first.weight.flatten().tolist() == [1.0, 2.0]
    assert ends.source["first.weight"].flatten().tolist() == [3.0, 4.0]


def test_a_functional_call_gets_tied_weights_once() -> None:
    ends, swap = small_ends()
    assert ends.parameters == ("first.weight",)
    whole = ends.midpoint(swap, 0.5)
    assert "again.weight" in whole
    assert ends.callable_weights(whole).keys() == {
        "first.weight",
        "scale",
        "count",
    }


def test_names_of_compiled_networks_are_those_of_the_plain_one() -> None:
    plain = state([1.0, 2.0], [0.0, 0.0], 0)
    compiled = {f"_orig_mod.{name}": t for name, t in plain.items()}
    ends = Endpoints(Small(), compiled, plain)
    assert ends.reference.keys() == plain.keys()
    assert ends.reference_path is None


@pytest.mark.parametrize("role", ["reference", "source"])
def test_an_end_that_does_not_fit_is_named(role: str) -> None:
    good = state([1.0, 2.0], [0.0, 0.0], 0)
    bad: dict[str, Tensor] = {**good, "scale": torch.zeros(3)}
    given = (bad, good) if role == "reference" else (good, bad)
    message = rf"the {role}: tensor 'scale' has shape \(3,\), the model"
    with pytest.raises(StateDictError, match=message):
        Endpoints(Small(), *given)


def test_a_file_is_remembered_or_refused_by_its_path(tmp_path: Path) -> None:
    good = state([1.0, 2.0], [0.0, 0.0], 0)
    path = tmp_path / "a.pt"
    torch.save(good, path)
    ends = Endpoints(Small(), path, good)
    assert ends.reference_path == path
    assert ends.reference["first.weight"].flatten().tolist() == [1.0, 2.0]
    with pytest.raises(CheckpointError, match=r"missing\.pt"):
        Endpoints(Small(), good, tmp_path / "missing.pt")
