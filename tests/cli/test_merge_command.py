"""The file commands as a person uses them: real arguments, real files, one-line errors."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from helpers.classifier import Classifier
from helpers.models import randomise

from lightning_rebasin.cli.main import COMMANDS, main
from lightning_rebasin.symmetry import Permutation, infer_spec

MODULE = "helpers.classifier.Classifier"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.ckpt, the same network in another order as b.ckpt, and a module ``loaders_here`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    net = Classifier(hidden=6, batch_norm=True)
    net.example_input_array = torch.randn(4, 6)
    state = {n: t.clone() for n, t in randomise(net).state_dict().items()}
    order = Permutation.random(
        infer_spec(net), torch.Generator().manual_seed(0)
    )
    common = {
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"hidden": 6, "batch_norm": True, "x": print},
    }
    torch.save({**common, "state_dict": state}, "a.ckpt")
    torch.save({**common, "state_dict": order.apply(state)}, "b.ckpt")
    name = f"loaders_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from helpers.classifier import blobs\n"
        "from lightning.pytorch import LightningDataModule\n"
        "from torch.utils.data import DataLoader\n"
        "def pair():\n"
        "    return DataLoader(blobs(64, 0), batch_size=16), DataLoader(blobs(50, 1), batch_size=16)\n"
        "class Blobs(LightningDataModule):\n"
        "    def __init__(self, samples=64):\n"
        "        super().__init__()\n"
        "        self.samples = samples\n"
        "    def train_dataloader(self):\n"
        "        return DataLoader(blobs(self.samples, 0), batch_size=16)\n"
        "    def val_dataloader(self):\n"
        "        return DataLoader(blobs(50, 1), batch_size=16)\n"
        "from helpers.classifier import Classifier\n"
        "from torch.nn.functional import cross_entropy\n"
        "class Plain(Classifier):\n"
        "    def validation_step(self, batch, batch_idx):\n"
        "        self.log('val_loss', cross_entropy(self(batch[0]), batch[1]))\n"
        "def network():\n"
        "    return Classifier(hidden=6, batch_norm=True).net\n"
        "def broken():\n"
        "    raise RuntimeError('no disk')\n"
    )
    return state, name


def run(*arguments):
    return main([str(a) for a in arguments])


def one_line(capsys):
    err = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line and "it/s]" not in line and "%|" not in line
    ]
    assert len(err) == 1, err
    return err[0]


def test_merge_from_lightning_files(files, tmp_path, capsys):
    state, name = files
    code = run(
        "merge", "a.ckpt", "b.ckpt", "-o", "out.ckpt", "--module", MODULE, "--data", f"{name}.pair", "--statistics",
        "none", "--report", "r.json",
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0
    assert "same function" in out
    assert "wrote out.ckpt" in out
    assert "reading" in err  # progress
    payload = torch.load("out.ckpt", weights_only=True)
    assert payload["hyper_parameters"] == {"hidden": 6, "batch_norm": True}
    for key, tensor in payload["state_dict"].items():
        torch.testing.assert_close(tensor, state[key])
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report["evaluation"]) == {
        "a.ckpt",
        "b.ckpt",
        "naive average",
        "merged",
    }
    assert report["evaluation"]["merged"]["val_loss"] == pytest.approx(
        report["evaluation"]["a.ckpt"]["val_loss"], rel=1e-4
    )
    assert "dropped: hyper_parameters.x" in out


@pytest.mark.parametrize("data", ["pair", "Blobs"])
def test_statistics_from_a_function_or_a_data_module(files, data, capsys):
    _, name = files
    arguments = (
        "--module",
        MODULE,
        "--data",
        f"{name}.{data}",
        "--no-progress",
    )
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "out.ckpt",
            *arguments,
            "--statistics",
            "repair",
            "--batches",
            2,
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert "variance of the activations" in out
    assert err == ""


def test_a_config_file_gives_network_and_data(files, tmp_path, capsys):
    _, name = files
    (tmp_path / "config.yaml").write_text(
        f"fit:\n  model:\n    class_path: {MODULE}\n    init_args: {{hidden: 6, batch_norm: true}}\n"
        f"  data:\n    class_path: {name}.Blobs\n    init_args: {{samples: 32}}\n"
    )
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "out.ckpt",
            "--config",
            "config.yaml",
            "--no-progress",
        )
        == 0
    )
    assert "statistics reset" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(
        f"model: {{class_path: {MODULE}}}\ndata: {{class_path: {name}.Nothing}}\n"
    )
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "o.ckpt",
            "--config",
            "config.yaml",
        )
        == 2
    )
    assert "'data' section of config.yaml" in one_line(capsys)


def test_match_apply_and_back(files, capsys):
    state, _ = files
    quiet = ("--no-progress",)
    assert (
        run(
            "match",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "p.perm",
            "--module",
            MODULE,
            "--input-shape",
            "4,6",
            *quiet,
        )
        == 0
    )
    assert "same function" in capsys.readouterr().out
    assert (
        run(
            "apply",
            "p.perm",
            "b.ckpt",
            "-o",
            "c.ckpt",
            "--module",
            MODULE,
            "--input-shape",
            "4,6",
        )
        == 0
    )
    assert "relative error" in capsys.readouterr().out
    got = torch.load("c.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(got[n], t) for n, t in state.items())
    assert run("apply", "p.perm", "c.ckpt", "-o", "d.ckpt", "--inverse") == 0
    back, b = (
        torch.load("d.ckpt", weights_only=True)["state_dict"],
        torch.load("b.ckpt", weights_only=False)["state_dict"],
    )
    assert all(torch.equal(back[n], t) for n, t in b.items())
    assert (
        run("apply", "p.perm", "b.ckpt", "-o", "e.ckpt", "--permute-optimizer")
        == 2
    )
    assert "no optimizer state" in capsys.readouterr().err


def test_a_spec_needs_no_model_code(files, capsys):
    net = Classifier(hidden=6, batch_norm=True)
    infer_spec(net).save("spec.json")
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "out.safetensors",
            "--spec",
            "spec.json",
            "--no-progress",
        )
        == 0
    )
    assert "not proved" in capsys.readouterr().out
    assert (
        run("merge", "a.ckpt", "b.ckpt", "-o", "o.ckpt", "--spec", "a.ckpt")
        == 2
    )
    assert "cannot read a permutation spec from a.ckpt" in one_line(capsys)


@pytest.mark.parametrize(
    ("suffix", "module"),
    [("png", "Plain"), ("csv", "network"), ("json", "network")],
)
def test_barrier_measures_and_draws(files, tmp_path, suffix, module, capsys):
    _, name = files
    arguments = (
        "--module",
        f"{name}.{module}",
        "--input-shape",
        "4,6",
        "--data",
        f"{name}.pair",
        "--points",
        3,
        "--match",
        "--no-progress",
    )
    assert (
        run("barrier", "a.ckpt", "b.ckpt", *arguments, "-o", f"b.{suffix}")
        == 0
    )
    out = capsys.readouterr().out
    matched = float(
        next(
            line for line in out.splitlines() if "loss" in line.split()[0]
        ).split()[-1]
    )
    assert matched == pytest.approx(0, abs=1e-3)
    content = (tmp_path / f"b.{suffix}").read_bytes()
    assert content.startswith(
        {"png": b"\x89PNG", "csv": b"lam,naive_", "json": b"{"}[suffix]
    )


@pytest.mark.parametrize(
    "method", ["weight", "activation", "correlation", "auto"]
)
@pytest.mark.parametrize("module", ["Plain", "network"])
def test_barrier_matches_as_it_is_told(files, capsys, method, module):
    _, name = files
    arguments = ["--module", f"{name}.{module}", "--data", f"{name}.pair"]
    arguments += ["--points", 3, "--no-progress", "--method", method]
    assert run("barrier", "a.ckpt", "b.ckpt", *arguments) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if "loss" in x.split()[0])
    naive, matched = (float(x) for x in line.split()[-2:])
    assert matched == pytest.approx(0, abs=1e-3)
    assert naive > 0.01
    assert ("matched by weight; distances" in out) == (method == "auto")


def test_dry_run_and_force(files, tmp_path, capsys):
    before = {p.name for p in tmp_path.iterdir()}
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "out.ckpt",
            "--method",
            "average",
            "--dry-run",
            "--no-progress",
        )
        == 0
    )
    assert "dry run" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == before
    (tmp_path / "out.ckpt").write_text("mine")
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "out.ckpt",
            "--method",
            "average",
            "--no-progress",
        )
        == 2
    )
    assert "--force" in one_line(capsys)
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "out.ckpt",
            "--method",
            "average",
            "--no-progress",
            "--force",
        )
        == 0
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: lightning-rebasin {command}")
    assert len(out) > 500


def test_overview_and_version(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
    assert run() == 2
    assert run("--version") == 0


AVERAGE = "merge a.ckpt b.ckpt -o x.ckpt --method average"
BAD = {
    "no such command": ("bogus", "there is no command 'bogus'"),
    "no output": ("merge a.ckpt b.ckpt", "-o/--output"),
    "unknown option": ("merge a.ckpt b.ckpt -o x.ckpt --bogus", "--bogus"),
    "bad choice": (
        "merge a.ckpt b.ckpt -o x.ckpt --method magic",
        "'weight', 'activation'",
    ),
    "one file": ("merge a.ckpt -o x.ckpt --method average", "two or more"),
    "missing file": (
        "merge a.ckpt no.ckpt -o x.ckpt --method average",
        "no.ckpt",
    ),
    "not a checkpoint": (
        "merge a.ckpt text.txt -o x.ckpt --method average",
        "text.txt",
    ),
    "no network": ("merge a.ckpt b.ckpt -o x.ckpt", "--module or --config"),
    "bad module": (
        "merge a.ckpt b.ckpt -o x.ckpt --module no.such.Net",
        "no.such.Net",
    ),
    "bad data": (
        f"merge a.ckpt b.ckpt -o x.ckpt --module {MODULE} --data os.bogus",
        "os.bogus",
    ),
    "bad arguments": (
        f"match a.ckpt b.ckpt -o x.p --module {MODULE} --init-args {{",
        "--init-args",
    ),
    "wrong width": (
        f'match a.ckpt b.ckpt -o x.p --module {MODULE} --init-args {{"hidden":7}}',
        "shape",
    ),
    "missing folder": (
        "merge a.ckpt b.ckpt -o no/x.ckpt --method average",
        "folder no",
    ),
    "wrong weights": (f"{AVERAGE} --share 1", "1 weights"),
    "live weights": (f"{AVERAGE} --weights current", "Averaging"),
    "bad prefix": (f"{AVERAGE} --prefix zz.", "zz."),
    "not a permutation": ("apply a.ckpt b.ckpt -o x.ckpt", "permutation"),
    "barrier without data": (
        f"barrier a.ckpt b.ckpt --module {MODULE}",
        "--data",
    ),
    "activation without data": (
        f"merge a.ckpt b.ckpt -o x.ckpt --module {MODULE} --method activation",
        "--data",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line_and_leave_nothing(
    files, tmp_path, case, capsys
):
    (tmp_path / "text.txt").write_text("hello")
    before = {p.name for p in tmp_path.iterdir()}
    arguments, message = BAD[case]
    try:
        code = run(*arguments.split())
    except SystemExit as leave:
        code = leave.code
    assert code == 2
    line = one_line(capsys)
    assert "error: " in line
    assert message in line
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == before


def test_one_file_rewritten_needs_no_advice(files, capsys):
    assert (
        run(
            "merge",
            "a.ckpt",
            "-o",
            "a.safetensors",
            "--method",
            "none",
            "--no-progress",
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("1 model, method none")
    assert "no data" not in out


def test_failing_user_code_is_reported(files, capsys):
    _, name = files
    assert (
        run(
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "x.ckpt",
            "--module",
            MODULE,
            "--data",
            f"{name}.broken",
        )
        == 2
    )
    assert "RuntimeError: no disk" in one_line(capsys)


def test_prefix_option(files):
    state, _ = files
    torch.save({f"wrapped.{n}": t for n, t in state.items()}, "w.pt")
    quiet = ("-o", "o.pt", "--method", "average", "--no-progress", "--force")
    assert run("merge", "w.pt", "w.pt", "--prefix", "wrapped.", *quiet) == 0
    assert (
        run(
            "merge",
            "w.pt",
            "w.pt",
            "--prefix",
            "wrapped.net=net",
            "--prefix",
            "wrapped.=x.",
            *quiet,
        )
        == 0
    )
    assert list(torch.load("o.pt", weights_only=True)) == [
        f"wrapped.{n}" for n in state
    ]


# A shell starts background jobs with SIGINT ignored, and their children inherit that: the default handler comes first.
SLOW_SAVE = """
import signal, sys, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)
from lightning_rebasin.checkpoints import write
from lightning_rebasin.cli.main import main
save = torch.save
def slow(payload, file):
    save(payload, file)
    file.truncate(100)
    print("half", flush=True)
    time.sleep(60)
write.torch.save = slow
sys.exit(main(sys.argv[1:]))
"""


def test_interrupted_while_writing_leaves_nothing(files, tmp_path):
    before = {p.name for p in tmp_path.iterdir()}
    command = [
        sys.executable,
        "-c",
        SLOW_SAVE,
        *[
            "merge",
            "a.ckpt",
            "b.ckpt",
            "-o",
            "out.ckpt",
            "--method",
            "average",
        ],
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in err
    assert {p.name for p in tmp_path.iterdir()} == before


def test_killed_while_writing_leaves_no_broken_output(files, tmp_path):
    (tmp_path / "out.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes())
    command = [
        sys.executable,
        "-c",
        SLOW_SAVE,
        "merge",
        "a.ckpt",
        "b.ckpt",
        "-o",
        "out.ckpt",
        "--method",
        "average",
        "--force",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        text=True,
    )
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.communicate(timeout=120)
    assert (tmp_path / "out.ckpt").read_bytes() == (
        tmp_path / "a.ckpt"
    ).read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], *([command, "--help"] for command in COMMANDS)],
    ids=" ".join,
)
def test_help_does_not_wait_for_heavy_libraries(arguments):
    code = (
        "import sys\nfrom lightning_rebasin.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit(', '.join({'torch', 'lightning', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "usage: lightning-rebasin" in run.stdout
    assert (run.returncode, run.stderr) == (0, "")
