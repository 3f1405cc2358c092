"""Damaged files of every format: an error that names the file, and nothing is written."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.models import mlp
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_rebasin import infer_spec, merge_checkpoints
from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.checkpoints.write_distributed import alone
from lightning_rebasin.cli.main import main
from lightning_rebasin.errors import RebasinError
from lightning_rebasin.symmetry import PermutationSpec

State = dict[str, Tensor]
INDEX = "model.safetensors.index.json"
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:.*torch.jit"
)


def network() -> nn.Sequential:
    return mlp(3, 8, 2)


def whole(path: Path, state: State) -> None:
    torch.save(
        {"state_dict": state, "pytorch-lightning_version": "2.6.6"}, path
    )


def single(path: Path, state: State) -> None:
    save_file(state, path)


def shards(path: Path, state: State, suffix: str = ".safetensors") -> None:
    """A Hugging Face folder of two files."""
    path.mkdir()
    place = {}
    for number, names in enumerate((list(state)[:2], list(state)[2:])):
        file = f"part-{number}{suffix}"
        part = {name: state[name] for name in names}
        write = save_file if suffix == ".safetensors" else torch.save
        write(part, path / file)
        place.update(dict.fromkeys(names, file))
    stem = {".bin": "pytorch_model"}.get(suffix, "model")
    index = path / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": place}))
    (path / "config.json").write_text("{}")


def bins(path: Path, state: State) -> None:
    shards(path, state, ".bin")


def sharded(path: Path, state: State) -> None:
    from torch.distributed.checkpoint import save

    save({"model": state}, checkpoint_id=path, **alone(save))
    torch.save({"pytorch-lightning_version": "2.6.6"}, path / "meta.pt")


def cut(name: str = "", share: float = 0.5) -> Callable[[Path], None]:
    """Keep the first part of a file."""

    def damage(path: Path) -> None:
        file = path / name if name else path
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])

    return damage


def put(content: bytes, name: str = "") -> Callable[[Path], None]:
    """Other bytes in the place of a file."""
    return lambda path: _write(path / name if name else path, content)


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def lose(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def header(**entry: object) -> Callable[[Path], None]:
    """A safetensors file whose header says something else about one tensor."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        table = json.loads(content[8 : 8 + size])
        table["0.weight"].update(entry)
        text = json.dumps(table).encode()
        path.write_bytes(
            len(text).to_bytes(8, "little") + text + content[8 + size :]
        )

    return damage


def foreign_tar(path: Path) -> None:
    path.unlink()
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "readme")


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(network()), path)


def program(path: Path) -> None:
    torch.export.save(
        torch.export.export(network(), (torch.ones(2, 3),)),
        path.with_suffix(".pt2"),
    )
    path.with_suffix(".pt2").rename(path)


def tensors(**change: Tensor | None) -> Callable[[Path], None]:
    """Other weights in a file that is whole."""

    def damage(path: Path) -> None:
        state = dict(read_checkpoint(path).state_dict)
        for name, tensor in change.items():
            key = name.replace("_", ".")
            if tensor is None:
                del state[key]
            else:
                state[key] = tensor
        torch.save(state, path)

    return damage


class Case(NamedTuple):
    make: Callable[[Path, State], None]
    damage: Callable[[Path], object]
    says: str


NAN = torch.full((8, 3), float("nan"))
CASES = {
    "empty file": Case(whole, put(b""), "is empty"),
    "half a checkpoint": Case(whole, cut(), "truncated or damaged"),
    "the first bytes": Case(whole, cut(share=0.02), "truncated or damaged"),
    "text": Case(whole, put(b"<html>404"), "not a file written by"),
    "half an old pickle": Case(
        lambda path, state: torch.save(
            state, path, _use_new_zipfile_serialization=False
        ),
        cut(),
        "cannot be read|truncated",
    ),
    "a foreign zip": Case(
        whole, put(b"PK\x05\x06" + b"\0" * 18), "not one written by"
    ),
    "a foreign tar": Case(whole, foreign_tar, "not one written by"),
    "a list": Case(whole, lambda p: torch.save([1, 2], p), "not a dict of"),
    "no tensors": Case(whole, lambda p: torch.save({"a": 1}, p), "no tensors"),
    "TorchScript": Case(whole, script, "TorchScript"),
    "exported program": Case(whole, program, "exported program"),
    "half of safetensors": Case(single, cut(), "damaged safetensors"),
    "a header that is no JSON": Case(
        single,
        put((20).to_bytes(8, "little") + b"{" * 40),
        "damaged safetensors",
    ),
    "a header without end": Case(
        single,
        put((2**40).to_bytes(8, "little") + b"{}"),
        "not a file|damaged",
    ),
    "offsets beyond the end": Case(
        single, header(data_offsets=[0, 10**9]), "damaged safetensors"
    ),
    "another shape": Case(single, header(shape=[3, 9]), "damaged safetensors"),
    "an unknown dtype": Case(
        single, header(dtype="F7"), "damaged safetensors"
    ),
    "an index that is no JSON": Case(
        shards, put(b"{", INDEX), "not valid JSON"
    ),
    "an empty index": Case(shards, put(b"{}", INDEX), "no weight_map"),
    "a lost shard": Case(
        shards, lose("part-1.safetensors"), "which is not there"
    ),
    "half a shard": Case(
        shards, cut("part-0.safetensors"), "part-0.safetensors"
    ),
    "a shard of another model": Case(
        shards,
        lambda p: shutil.copy(
            p / "part-0.safetensors", p / "part-1.safetensors"
        ),
        "lacks the tensor",
    ),
    "a lost .bin": Case(bins, lose("part-1.bin"), "which is not there"),
    "half a .bin": Case(bins, cut("part-0.bin"), "part-0.bin"),
    "a broken configuration": Case(
        shards, put(b"{", "config.json"), "not valid JSON"
    ),
    "a folder of nothing": Case(
        shards, lambda p: [f.unlink() for f in p.iterdir()], "is a folder"
    ),
    "half an index of ranks": Case(
        sharded, cut(".metadata"), "truncated or damaged"
    ),
    "a lost rank": Case(sharded, lose("__0_0.distcp"), "which is not there"),
    "half a rank": Case(sharded, cut("__0_0.distcp"), "too short"),
    "a rank of zeros": Case(
        sharded,
        lambda p: _write(p / "__0_0.distcp", b"\0" * 10**5),
        "is damaged",
    ),
    "a lost tensor": Case(whole, tensors(**{"2_bias": None}), "2.bias"),
    "a tensor too many": Case(whole, tensors(more=torch.ones(2)), "more"),
    "a tensor of another shape": Case(
        whole, tensors(**{"0_bias": torch.ones(9)}), "0.bias"
    ),
    "a tensor of NaN": Case(whole, tensors(**{"0_weight": NAN}), "0.weight"),
}


@pytest.fixture
def spec() -> PermutationSpec:
    return infer_spec(network(), torch.ones(2, 3))


@pytest.mark.parametrize("name", CASES)
def test_a_clear_error_and_nothing_written(
    tmp_path: Path, spec: PermutationSpec, name: str
) -> None:
    case = CASES[name]
    state = dict(network().state_dict())
    for path in (tmp_path / "good", tmp_path / "bad"):
        case.make(path, state)
    # What is not damaged can be merged.
    report = merge_checkpoints(
        [tmp_path / "good", tmp_path / "bad"], tmp_path / "out.pt", spec=spec
    )
    assert report.output is not None
    (tmp_path / "out.pt").unlink()
    case.damage(tmp_path / "bad")
    before = sorted(tmp_path.rglob("*"))
    for files in (["good", "bad"], ["bad", "good"]):
        with pytest.raises(RebasinError, match=case.says) as found:
            merge_checkpoints(
                [tmp_path / file for file in files],
                tmp_path / "out",
                spec=spec,
            )
        assert "bad" in str(found.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, spec: PermutationSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(network().state_dict())
    for name in ("good", "bad"):
        shards(tmp_path / name, state)
    cut("part-0.safetensors")(tmp_path / "bad")
    spec.save(tmp_path / "spec.json")
    words = ["merge", str(tmp_path / "good"), str(tmp_path / "bad")]
    words += [
        "-o",
        str(tmp_path / "out"),
        "--spec",
        str(tmp_path / "spec.json"),
    ]
    assert main([*words, "--no-progress"]) != 0
    printed = capsys.readouterr()
    assert "part-0.safetensors is a damaged safetensors file" in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()
