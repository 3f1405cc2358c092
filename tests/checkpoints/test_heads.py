"""Classifiers of different label sets become one network with the classes of all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_files import loaded
from helpers.commands import one_line, run
from helpers.models import mlp, randomise
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.checkpoints.heads import Heads, join_heads
from lightning_rebasin.checkpoints.read import read_checkpoint
from lightning_rebasin.errors import ConfigurationError, StateDictError
from lightning_rebasin.symmetry import Permutation, infer_spec

Capture = pytest.CaptureFixture[str]
SIZES = (3, 2)
X = torch.randn(96, 6, generator=torch.Generator().manual_seed(5))


class Net(LightningModule):
    """A classifier of as many classes as one asks for."""

    def __init__(self, num_classes: int = 3, hidden: int = 12) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = mlp(6, hidden, hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blobs around five centres."""
    centres = 2 * torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    noise = torch.randn(count, 6, generator=generator)
    return centres[labels] + 0.8 * noise, labels


def trained(classes: range, seed: int) -> nn.Sequential:
    """A network that knows some of the five classes, and nothing of the others.

    Each class is told from the rest and from a background, which makes outputs of several networks comparable.
    """
    x, y = points(1000, seed)
    known = (y >= classes.start) & (y < classes.stop)
    x, y = x[known], y[known] - classes.start
    wanted = nn.functional.one_hot(y, len(classes)).float()
    background = 4 * torch.randn(
        len(x), 6, generator=torch.Generator().manual_seed(seed + 10)
    )
    x = torch.cat([x, background])
    wanted = torch.cat([wanted, torch.zeros_like(wanted)])
    net = seeded(lambda: mlp(6, 32, 32, len(classes)), seed)
    optimizer = torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(net(x), wanted)
        loss.backward()
        optimizer.step()
    return net.eval()


def seeded(make, seed: int = 0):
    """A network whose layers in front of the head depend on the seed only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise(make(), seed)


def planted(folder: Path) -> tuple[nn.Module, nn.Module]:
    """One trunk in two orders behind heads of three and of two classes, as Lightning files."""
    ends = []
    for name, size in zip("ab", SIZES, strict=True):
        net = seeded(lambda size=size: Net(size))
        head = net.net[-1]
        generator = torch.Generator().manual_seed(size)
        for part in (head.weight, head.bias):
            part.data = torch.randn(part.shape, generator=generator)
        state = net.state_dict()
        if name == "b":
            spec = infer_spec(net, X[:4])
            hidden = torch.Generator().manual_seed(1)
            state = Permutation.random(spec, hidden).apply(state)
        payload = {
            "pytorch-lightning_version": "2.6.6",
            "hyper_parameters": {"num_classes": size, "hidden": 12},
            "state_dict": state,
        }
        torch.save(payload, folder / f"{name}.ckpt")
        ends.append(net.eval())
    return ends[0], ends[1]


def files(folder: Path) -> list[Path]:
    return [folder / "a.ckpt", folder / "b.ckpt"]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.8)])
@pytest.mark.parametrize("data", [None, list(X.split(24))])
def test_a_planted_trunk_has_both_heads_as_they_were(
    tmp_path: Path, shares, data
) -> None:
    a, b = planted(tmp_path)
    report = merge_checkpoints(
        files(tmp_path),
        tmp_path / "out.ckpt",
        module=a,
        example=X[:8],
        data=data,
        shares=shares,
        heads="concatenate",
    )
    merged = Net.load_from_checkpoint(tmp_path / "out.ckpt").eval()
    assert merged.hparams.num_classes == 5
    wanted = torch.cat([a(X), b(X)], 1)
    torch.testing.assert_close(merged(X), wanted, rtol=1e-4, atol=1e-4)
    assert report.cosines[0][1] == pytest.approx(1)
    assert "outputs 0-2: a.ckpt, 3-4: b.ckpt" in str(report).splitlines()
    advice = " ".join(report.advice)
    assert "'net.4' has all classes (outputs 0-2: a.ckpt, 3-4: b" in advice
    assert "'num_classes' is 5" in advice
    assert report.to_dict()["heads"] == {
        "layer": "net.4",
        "outputs": {"a.ckpt": [0, 2], "b.ckpt": [3, 4]},
        "parameter": "num_classes",
    }
    history = loaded(tmp_path / "out.ckpt")["lightning_rebasin"]
    assert history["heads"] == {"layer": "net.4", "sizes": [3, 2]}
    # The caller's module is as it was.
    assert a.net[-1].weight.shape == (3, 12)


def test_the_plain_average_keeps_the_heads_too(tmp_path: Path) -> None:
    a, b = planted(tmp_path)
    merge_checkpoints(
        files(tmp_path),
        tmp_path / "out.ckpt",
        module=a,
        example=X[:8],
        method="average",
        shares=(3, 1),
        heads="concatenate",
    )
    weight = loaded(tmp_path / "out.ckpt")["state_dict"]["net.4.weight"]
    state = loaded(tmp_path / "b.ckpt")["state_dict"]
    torch.testing.assert_close(weight[:3], a.state_dict()["net.4.weight"])
    torch.testing.assert_close(weight[3:], state["net.4.weight"])
    assert b is not None


def test_two_label_sets_become_one_network_that_knows_both(
    tmp_path: Path,
) -> None:
    ends = [trained(range(3), 1), trained(range(3, 5), 2)]
    for name, end in zip("ab", ends, strict=True):
        torch.save(end.state_dict(), tmp_path / f"{name}.pt")
    x, y = points(1000, 7)

    def evaluate(network: nn.Module) -> dict[str, float]:
        logits = network(x).detach()
        right = float((logits.argmax(1) == y).float().mean())
        return {
            "accuracy": right,
            "loss": float(nn.functional.cross_entropy(logits, y)),
        }

    report = merge_checkpoints(
        [tmp_path / "a.pt", tmp_path / "b.pt"],
        tmp_path / "out.pt",
        module=ends[0],
        data=list(points(1000, 8)[0].split(100)),
        evaluate=evaluate,
        heads="concatenate",
    )
    rows = {n: row["accuracy"] for n, row in report.evaluation.items()}
    # What a single model cannot know it can only hit by chance.
    assert rows["merged"] > max(rows["a.pt"], rows["b.pt"]) + 0.15
    assert rows["merged"] > rows["naive average"] + 0.15
    # The ensemble is both networks side by side.
    logits = torch.cat([end(x) for end in ends], 1).detach()
    joint = float((logits.argmax(1) == y).float().mean())
    assert rows["ensemble"] == pytest.approx(joint, abs=1e-6)
    assert rows["merged"] > joint - 0.03
    # A single model is measured with its logits as they are.
    alone = torch.cat([ends[0](x), torch.zeros(len(x), 2)], 1).detach()
    loss = float(nn.functional.cross_entropy(alone, y))
    assert report.evaluation["a.pt"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert "make the network with 5 outputs" in " ".join(report.advice)
    merged = mlp(6, 32, 32, 5)
    merged.load_state_dict(loaded(tmp_path / "out.pt"))


def test_other_sizes_without_the_option_are_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    a, _ = planted(tmp_path)
    with pytest.raises(StateDictError, match="--heads concatenate"):
        merge_checkpoints(
            files(tmp_path), tmp_path / "o.ckpt", module=a, example=X
        )
    # Another width is no matter of heads.
    torch.save(Net(3, 10).state_dict(), tmp_path / "c.ckpt")
    with pytest.raises(StateDictError) as caught:
        merge_checkpoints(
            [tmp_path / "a.ckpt", tmp_path / "c.ckpt"],
            tmp_path / "o.ckpt",
            method="average",
        )
    assert "--heads" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": None}, "give the module"),
        ({"heads": "sum"}, "'average', 'concatenate', got 'sum'"),
        ({"method": "none"}, "a part of every model"),
        ({"shares": (1.0, 0.0)}, "a part of every model"),
        (
            {"module": nn.Sequential(Net(), nn.Softmax(1)), "prefix": "0."},
            "returns something else",
        ),
    ],
)
def test_what_cannot_work_is_said(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    a, _ = planted(tmp_path)
    given = {"module": a, "heads": "concatenate", **options}
    if "prefix" in given:
        given["prefix"] = {"net.": "0.net."}
    with pytest.raises(ConfigurationError, match=message):
        merge_checkpoints(
            files(tmp_path),
            tmp_path / "out.ckpt",
            method=given.pop("method", "average"),
            example=X,
            **given,
        )
    assert not (tmp_path / "out.ckpt").exists()


def test_a_spec_does_not_go_with_it(tmp_path: Path) -> None:
    a, _ = planted(tmp_path)
    with pytest.raises(ConfigurationError, match=r"leave the spec"):
        merge_checkpoints(
            files(tmp_path),
            tmp_path / "out.ckpt",
            module=a,
            spec=infer_spec(a, X),
            heads="concatenate",
        )


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"num_classes": 3, "hidden": 3}, "num_classes"),
        ({"out_features": 3}, "out_features"),
        ({"num_classes": 4}, ""),
        ({"hidden": 3}, ""),
        ({"classes": True, "labels": 3.0}, ""),
        # Two that could be meant.
        ({"classes": 3, "outputs": 3}, ""),
    ],
)
def test_the_number_of_classes_is_found_among_the_hyper_parameters(
    tmp_path: Path, arguments: dict[str, object], parameter: str
) -> None:
    path = tmp_path / "a.ckpt"
    net = Net()
    payload = {
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": arguments,
        "state_dict": net.state_dict(),
    }
    torch.save(payload, path)
    read = read_checkpoint(path)
    heads = join_heads(net, [X], [read, read], keeps_arguments=True)
    assert heads == Heads("net.4", (3, 3), parameter)
    stored = heads.files([read, read])[0].metadata["hyper_parameters"]
    wanted = {**arguments, parameter: 6} if parameter else arguments
    assert stored == wanted
    lost = join_heads(net, [X], [read, read], keeps_arguments=False)
    assert lost.parameter == ""


def test_a_convolution_of_kernel_one_is_a_head(tmp_path: Path) -> None:
    images = torch.randn(
        8, 3, 5, 5, generator=torch.Generator().manual_seed(0)
    )

    def build(classes: int) -> nn.Sequential:
        first = nn.Conv2d(3, 6, 3)
        last = nn.Conv2d(6, classes, 1, bias=False)
        pooled = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(first, nn.ReLU(), pooled, last, nn.Flatten())

    # The same seed gives one trunk.
    ends = [seeded(lambda size=size: build(size)) for size in SIZES]
    for name, end in zip("ab", ends, strict=True):
        torch.save(end.state_dict(), tmp_path / f"{name}.ckpt")
    merge_checkpoints(
        files(tmp_path),
        tmp_path / "out.pt",
        module=ends[1],
        example=images,
        method="average",
        heads="concatenate",
    )
    merged = build(5)
    merged.load_state_dict(loaded(tmp_path / "out.pt"))
    wanted = torch.cat([end(images) for end in ends], 1)
    torch.testing.assert_close(merged(images), wanted)


def test_metrics_that_know_too_few_classes_are_explained(
    tmp_path: Path,
) -> None:
    a, _ = planted(tmp_path)

    def evaluate(network: nn.Module) -> dict[str, float]:
        raise ValueError("preds should have 3 columns")

    with pytest.raises(ConfigurationError, match="made for 5 classes"):
        merge_checkpoints(
            files(tmp_path),
            tmp_path / "out.ckpt",
            module=a,
            example=X,
            evaluate=evaluate,
            heads="concatenate",
        )


CODE = """
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(LightningModule):
    def __init__(self, num_classes=3, hidden=12):
        super().__init__()
        self.save_hyperparameters()
        parts = nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        self.net = nn.Sequential(*parts, nn.Linear(hidden, num_classes))
    def forward(self, x):
        return self.net(x)
    def validation_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss)

def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    y = torch.randint(5, (60,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=20)
"""


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    a, b = planted(tmp_path)
    code = f"heads_{tmp_path.name}"
    (tmp_path / f"{code}.py").write_text(CODE)
    command = f"merge a.ckpt b.ckpt -o out.ckpt --module {code}.Net"
    command += f" --data {code}.batches --no-progress"
    assert run(command) == 2
    assert "--heads concatenate" in one_line(capsys)
    assert run(command, "--heads concatenate --report r.json") == 0
    assert "outputs 0-2: a.ckpt, 3-4: b.ckpt" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    # Labels of several data sets are numbered differently: they do not decide.
    assert report["criterion"] == "distance"
    assert "val_loss" in report["evaluation"]["merged"]
    merged = Net.load_from_checkpoint("out.ckpt").eval()
    wanted = torch.cat([a(X), b(X)], 1)
    torch.testing.assert_close(merged(X), wanted, rtol=1e-4, atol=1e-4)
