import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import same
from helpers.models import BatchNormCNN
from torch import Tensor, nn

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.checkpoints.names import (
    as_state,
    clean_names,
    find_weights,
    fit_names,
    is_counter,
)
from lightning_rebasin.errors import CheckpointError, StateDictError


def test_prefixes(tmp_path: Path, state: dict[str, Tensor]) -> None:
    def save(names: dict[str, str]) -> None:
        renamed = {new: state[old] for new, old in names.items()}
        torch.save(renamed, tmp_path / "a.pt")

    save({f"module.{n}": n for n in state})
    assert same(read_checkpoint(tmp_path / "a.pt").state_dict, state)
    assert list(read_checkpoint(tmp_path / "a.pt", prefix="").state_dict) == [
        f"module.{n}" for n in state
    ]
    save({f"model._orig_mod.{n}": n for n in state})
    assert list(read_checkpoint(tmp_path / "a.pt").state_dict) == [
        f"model.{n}" for n in state
    ]
    assert same(
        read_checkpoint(
            tmp_path / "a.pt", prefix="model._orig_mod."
        ).state_dict,
        state,
    )
    mapped = read_checkpoint(
        tmp_path / "a.pt",
        prefix={"model._orig_mod.0": "first", "model._orig_mod.": "rest."},
    )
    assert list(mapped.state_dict) == [
        "first.weight",
        "first.bias",
        "rest.2.weight",
        "rest.2.bias",
    ]
    assert mapped.names["first.bias"] == "model._orig_mod.0.bias"
    with pytest.raises(
        CheckpointError,
        match=r"'model._orig_mod.0.weight' does not begin with the prefix 'net.'",
    ):
        read_checkpoint(tmp_path / "a.pt", prefix="net.")
    with pytest.raises(CheckpointError, match="would both be called 'x'"):
        read_checkpoint(
            tmp_path / "a.pt",
            prefix={f"model._orig_mod.{n}": "x" for n in state},
        )


def test_a_lightning_module_may_call_its_child_module(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    names = {f"module.{n}": t for n, t in state.items()}
    torch.save(
        {"pytorch-lightning_version": "2.6.6", "state_dict": names},
        tmp_path / "a.ckpt",
    )
    assert list(read_checkpoint(tmp_path / "a.ckpt").state_dict) == list(names)


class Foreign(nn.Module):
    """Unknown to the restricted reader, with everything a module can have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = BatchNormCNN(2)
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.hook = self.body.fc.forward

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol)


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_give_their_state_dict(
    tmp_path: Path, zipped: bool
) -> None:
    module = Foreign()
    del module.hook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(
            {"net": module, "epoch": 1},
            tmp_path / "a.pt",
            _use_new_zipfile_serialization=zipped,
        )
        torch.save(
            module, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped
        )
    assert same(
        dict(sorted(read_checkpoint(tmp_path / "a.pt").state_dict.items())),
        dict(sorted(module.state_dict().items())),
    )
    assert len(read_checkpoint(tmp_path / "b.pt").state_dict) == len(
        module.state_dict()
    )


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    cases: tuple[tuple[object, str], ...] = (
        ({"epoch": 3}, "no tensors"),
        ([1, 2], "a list, not a dict"),
        ({}, "none"),
        (7, "a int, not a dict"),
    )
    for payload, message in cases:
        torch.save(payload, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / "a.pt")


W = torch.ones(1)


def test_weights_are_looked_for_under_the_usual_keys_in_their_order() -> None:
    inner = {"w": W}
    payload = {"model": {"v": W}, "ema": {"u": W}, "state_dict": inner}
    assert find_weights(payload, None) == (inner, "state_dict")
    assert find_weights(payload, "ema") == ({"u": W}, "ema")
    # A usual key that holds something else (here a name) is no candidate.
    assert find_weights({"model": "mlp", "ema": inner}, None)[1] == "ema"
    assert find_weights({"w": W, "epoch": 3}, None) == (inner, None)


def test_a_key_without_weights_is_refused_with_what_there_is() -> None:
    payload = {"epoch": 3, "state_dict": {"w": W}}
    with pytest.raises(CheckpointError, match=r"'ema'.*'epoch', 'state_dict'"):
        find_weights(payload, "ema")
    with pytest.raises(CheckpointError, match=r"under 'epoch'"):
        find_weights(payload, "epoch")
    with pytest.raises(CheckpointError, match=r"'ema'.*holds: list"):
        find_weights([W], "ema")


def test_a_state_dict_is_mostly_tensors() -> None:
    extra = {"a": W, "b": W, "extra": 1}
    assert as_state(extra) == {"a": W, "b": W}
    assert as_state({"a": W, "lr": 0.1}) is None
    assert as_state({1: W}) is None
    assert as_state({}) is None
    assert as_state(W) is None


def test_wrappers_are_taken_off_only_where_all_names_have_them() -> None:
    def clean(*names: str, lightning: bool = False) -> list[str]:
        return list(clean_names(names, None, lightning=lightning))

    assert clean("module.a", "module.b") == ["a", "b"]
    assert clean("module.a", "b") == ["module.a", "b"]
    assert clean("module.a", lightning=True) == ["module.a"]
    assert clean("_orig_mod.a", "x._orig_mod.b") == ["a", "x.b"]
    assert clean("module._orig_mod.module.a") == ["module.a"]


def test_the_longest_prefix_that_fits_is_replaced() -> None:
    rule = {"net.": "n.", "net.head.": "h."}
    names = ["net.head.w", "net.body.w", "other.w"]
    found = clean_names(names, rule, lightning=False)
    assert found == {
        "h.w": "net.head.w",
        "n.body.w": "net.body.w",
        "other.w": "other.w",
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.w", "a.b"], ["a.w", "a.b"]),
        (["model.a.w", "model.a.b"], ["a.w", "a.b"]),
        (["a.w", "a.b"], ["model.a.w", "model.a.b"]),
        # "w" ends both names: only one of the two prefixes fits everything.
        (["x.w", "x.y.w"], ["w", "y.w"]),
    ],
)
def test_one_prefix_may_differ(names: list[str], expected: list[str]) -> None:
    found = fit_names(names, expected[::-1], "a.pt")
    assert found == dict(zip(expected, names, strict=True))
    assert list(found) == expected[::-1]


def test_batch_counters_may_be_on_either_side_alone() -> None:
    counter = "bn.num_batches_tracked"
    assert fit_names(["bn.w", counter], ["bn.w"], "") == {"bn.w": "bn.w"}
    assert fit_names(["bn.w"], ["bn.w", counter], "") == {"bn.w": "bn.w"}
    both = fit_names(["m.bn.w", f"m.{counter}"], [counter, "bn.w"], "")
    assert both == {counter: f"m.{counter}", "bn.w": "m.bn.w"}


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("num_batches_tracked", True),
        ("bn.num_batches_tracked", True),
        ("bn.num_batches_tracked.w", False),
        ("my_num_batches_tracked", False),
    ],
)
def test_counters_are_known_by_their_last_name(name: str, yes: bool) -> None:
    assert is_counter(name) == yes


@pytest.mark.parametrize(
    ("names", "expected", "message"),
    [
        (["a"], ["a", "c", "b"], r"lacks 'b' \(2 missing, 0 unexpected\)"),
        (["a", "y", "x"], ["a"], r"unexpected 'x' \(0 missing, 2 unexp"),
        (["p.a", "q.b"], ["a", "b"], r"lacks 'a' \(2 missing, 2 unexpected"),
    ],
)
def test_other_differences_are_named_and_counted(
    names: list[str], expected: list[str], message: str
) -> None:
    with pytest.raises(StateDictError, match=rf"^c\.pt.*{message}.*--prefix"):
        fit_names(names, expected, "c.pt")


def test_two_names_never_become_one() -> None:
    """Without the prefix both counters would have the same name, and one would be lost."""
    counter = "n.num_batches_tracked"
    names = ["m.n.w", f"m.{counter}", counter]
    with pytest.raises(StateDictError, match="does not fit"):
        fit_names(names, ["n.w"], "a.pt")
