"""Files built to do harm: nothing in them may run, and every one ends in a typed error or in plain tensors."""

import io
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile

import pytest
import torch
from helpers.models import mlp

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.errors import CheckpointError


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that every attack here tries to create, in the working folder."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


class Call:
    def __init__(self, function, *arguments):
        self.recipe = (function, arguments)

    def __reduce__(self):
        return self.recipe


ATTACKS = {
    "system": lambda: Call(os.system, "touch canary"),
    "eval": lambda: Call(eval, "open('canary', 'w')"),
    "exec": lambda: Call(exec, "open('canary', 'w').close()"),
    "open": lambda: Call(open, "canary", "w"),
    "import": lambda: Call(__import__, "antigravity"),
    "getattr chain": lambda: Call(getattr, Call(__import__, "os"), "system"),
    "torch.load": lambda: Call(torch.load, "canary"),
    "hub": lambda: Call(torch.hub.load, "canary"),
    "torch.save": lambda: Call(torch.save, 1, "canary"),
    "partial": lambda: Call(
        __import__("functools").partial, os.system, "touch canary"
    ),
    "map": lambda: Call(list, Call(map, os.system, ["touch canary"])),
    "from_file": lambda: Call(torch.from_file, "canary", 1, 100),
    "storage": lambda: Call(torch.UntypedStorage.from_file, "canary", 1, 100),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("zipped", [True, False])
def test_calls_in_a_file_are_inert(tmp_path, canary, attack, zipped):
    state = mlp(2, 3).state_dict()
    payload = {
        "state_dict": state,
        "hyper_parameters": {"x": ATTACKS[attack](), "lr": 0.1},
    }
    torch.save(
        payload, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped
    )
    c = read_checkpoint(tmp_path / "a.ckpt")
    assert all(torch.equal(c.state_dict[n], t) for n, t in state.items())
    assert c.metadata["hyper_parameters"]["lr"] == 0.1
    torch.save(
        ATTACKS[attack](),
        tmp_path / "b.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "b.ckpt")


def test_the_attacks_would_work_without_the_guard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": ATTACKS["system"]()}, "a.ckpt")
    torch.load("a.ckpt", weights_only=False)
    assert (tmp_path / "canary").exists()


def zip_with(path, data, records=()):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", data)
        z.writestr("archive/version", "3\n")
        for name, content in records:
            z.writestr(name, content)


#: Hand-written programs for the unpickler; each tries to get at something through one opcode.
PROGRAMS = {
    "INST": b"(S'touch canary'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch canary'\no.",
    "REDUCE": b"cos\nsystem\n(S'touch canary'\ntR.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n(S'touch canary'\nt\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85}\x92.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "dotted name": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x0ctouch canary\x85R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "BUILD on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__Ns\x86b.",
    "BUILD on a class": b"\x80\x02ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsK\x01sb.",
    "call a tensor": b"\x80\x02]K\x01\x85R.",
    "persistent id": b"\x80\x02X\x03\x00\x00\x00abcQ.",
    "APPEND to a class": b"\x80\x02ccollections\nOrderedDict\nK\x01a.",
    "memory by memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memory by bytearray": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
    "memory by bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "deep tuples as a key": b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep dicts by memo": b"\x80\x02N"
    + b"}K\x01" * 0
    + b"\x85q\x00h\x00\x86" * 5000
    + b".",
    "endless": b"\x80\x02]q\x00h\x00a.",
    "no stop": b"\x80\x02]",
    "stack underflow": b"\x80\x020000R.",
    "unknown opcode": b"\x80\x02\xff.",
    "future protocol": b"\x80\x63N.",
    "big int": b"I" + b"9" * 100_000 + b"\n.",
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("container", ["zip", "legacy", "tar"])
def test_hand_written_pickles(tmp_path, canary, program, container):
    data = PROGRAMS[program]
    path = tmp_path / "a.ckpt"
    if container == "zip":
        zip_with(path, data)
    elif container == "legacy":
        path.write_bytes(legacy_head() + data + pickle.dumps([], 2))
    else:
        tar_with(path, data)
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read_checkpoint(path)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def legacy_head():
    from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

    return b"".join(
        pickle.dumps(x, 2)
        for x in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True})
    )


def tar_with(path, data, kind=tarfile.REGTYPE, link=""):
    tensor = torch.arange(6.0).reshape(2, 3)
    float_storage = b"ctorch\nFloatStorage\n\x87."
    storages = (
        pickle.dumps(1, 2)
        + b"\x80\x02K\x00X\x03\x00\x00\x00cpu"
        + float_storage
    )
    storages += (
        struct.pack("<q", 6)
        + struct.pack("<6f", *tensor.flatten().tolist())
        + pickle.dumps([], 2)
    )
    tensors = pickle.dumps(1, 2) + b"\x80\x02K\x07K\x00" + float_storage
    tensors += struct.pack("<i4x2q2qq", 2, 2, 3, 3, 1, 0)
    with tarfile.open(path, "w:") as tar:
        for name, content in (
            ("sys_info", pickle.dumps({})),
            ("pickle", data),
            ("storages", storages),
            ("tensors", tensors),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name == "storages" and kind != tarfile.REGTYPE:
                info.type, info.linkname, info.size = kind, link, 0
            tar.addfile(info, io.BytesIO(content))


def test_tar_files_of_the_first_torch_versions_load(tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return 7 if value is tensor else None

    tensor = object()
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": tensor})
    tar_with(tmp_path / "a.pt", buffer.getvalue())
    assert read_checkpoint(tmp_path / "a.pt").state_dict["w"].tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE],
)
def test_tar_members_that_are_no_files_are_refused(tmp_path, kind):
    tar_with(tmp_path / "a.pt", pickle.dumps({}), kind, "/etc/passwd")
    with pytest.raises(
        CheckpointError, match="'storages' is not a plain file"
    ):
        read_checkpoint(tmp_path / "a.pt")


def test_zip_bombs(tmp_path):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", b"\x80\x02N.")
        z.writestr("archive/data/0", bytes(100 * 2**20))
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="built to fill memory"):
        read_checkpoint(path)


def test_tensors_that_claim_more_than_the_file_holds(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**9)}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match="'w' claims 1,000,000,000 numbers"
    ):
        read_checkpoint(tmp_path / "a.pt")


def test_path_tricks_in_names_touch_no_other_file(tmp_path, canary):
    torch.save(
        {"../canary": torch.zeros(2), "/etc/x": torch.ones(1)},
        tmp_path / "a.pt",
    )
    assert list(read_checkpoint(tmp_path / "a.pt").state_dict) == [
        "../canary",
        "/etc/x",
    ]
    zip_with(
        tmp_path / "b.ckpt",
        pickle.dumps({}),
        [("../canary", "x"), ("/canary", "x"), ("archive/../../canary", "x")],
    )
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "b.ckpt")


def test_old_containers_write_no_patch_files(tmp_path, canary):
    """torch's reader of very old module files compares source code, and may write a patch beside it."""
    module = torch.nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(
            {"net": module, "f": print},
            tmp_path / "a.pt",
            _use_new_zipfile_serialization=False,
        )
    read_checkpoint(tmp_path / "a.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def sources():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, generator=generator) for size in ((4, 3), (4,)))
    state = {"a.weight": a, "a.bias": b, "n": torch.tensor(3)}
    payload = {
        "epoch": 1,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "hyper_parameters": {"f": print},
    }
    made = {}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(payload, buffer, _use_new_zipfile_serialization=zipped)
        made["zip" if zipped else "legacy"] = buffer.getvalue()
    return made


def corrupt(raw, rng):
    raw = bytearray(raw)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randrange(1, 8)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del raw[rng.randrange(len(raw)) :]
    elif kind == 2:
        start = rng.randrange(len(raw))
        del raw[start : start + rng.randrange(1, 40)]
    else:
        start, other = rng.randrange(len(raw)), rng.randrange(len(raw))
        length = rng.randrange(1, 60)
        raw[start : start + length] = raw[other : other + length]
    return bytes(raw)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_damaged_files_end_in_a_typed_error_or_in_tensors(
    tmp_path, canary, kind
):
    rng = random.Random(20)
    raw = sources()[kind]
    outcomes = {"read": 0, "refused": 0}
    for i in range(
        800
    ):  # the old format holds addresses in memory: how many survive differs from run to run
        path = tmp_path / f"{i}.ckpt"
        path.write_bytes(corrupt(raw, rng))
        try:
            c = read_checkpoint(path)
            assert all(
                isinstance(t, torch.Tensor) for t in c.state_dict.values()
            )
            [
                t.sum() for t in c.state_dict.values()
            ]  # the memory is really there
            outcomes["read"] += 1
        except CheckpointError as error:
            assert path.name in str(error)
            outcomes["refused"] += 1
        path.unlink()
    assert min(outcomes.values()) > 10
    assert list(tmp_path.iterdir()) == []
