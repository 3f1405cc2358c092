"""Files written by version 0.1.0, before the package was sorted into rooms, load and mean the same today.

``tests/fixtures/make_old_files.py`` says how they were made.
"""

import json
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.old_networks import NETWORKS

from lightning_rebasin import Permutation, PermutationSpec, infer_spec
from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.landscape import BarrierCurve, load_trajectory
from lightning_rebasin.symmetry.observe import record_activations

OLD = Path(__file__).parent / "fixtures" / "old_files"


def expected(name):
    return torch.load(OLD / f"{name}.expected.pt", weights_only=True)


def network(name):
    """The network with the weights that it had then, and the input."""
    then = expected(name)
    net = NETWORKS[name][0]().eval()
    net.load_state_dict(then["state"])
    return net, then["input"]


def observe(spec, net, x):
    seen = []
    with (
        torch.no_grad(),
        record_activations(
            spec, lambda place, t: seen.append((place, place.units(t).clone()))
        ),
    ):
        net(x)
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_a_spec_has_the_groups_and_maps_that_are_found_today(name):
    path = OLD / f"{name}.spec.json"
    assert json.loads(path.read_text())["version"] == 1
    old = PermutationSpec.load(path).to_dict()
    new = infer_spec(*network(name)).to_dict()
    del old["activations"], new["activations"]
    assert json.dumps(old) == json.dumps(new)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permutation_does_what_it_did(name):
    net, _ = network(name)
    spec = PermutationSpec.load(OLD / f"{name}.spec.json")
    permutation = Permutation.load(OLD / f"{name}.perm")
    assert permutation.spec == spec
    assert not permutation.is_identity
    permuted = permutation.apply(net.state_dict())
    for key, tensor in expected(name)["permuted"].items():
        assert torch.equal(permuted[key], tensor), key


@pytest.mark.parametrize("name", NETWORKS)
def test_addresses_point_where_they_pointed(name):
    net, x = network(name)
    then = expected(name)
    seen = observe(PermutationSpec.load(OLD / f"{name}.spec.json"), net, x)
    places = [
        (place.component.group, place.ordinal, place.op, place.argument)
        for place, _ in seen
    ]
    assert places == then["places"]
    assert {place.numbering for place, _ in seen} == {"together"}
    for (_, units), old in zip(seen, then["activations"], strict=True):
        torch.testing.assert_close(units, old, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_old_and_new_addresses_see_the_same_activations(name):
    net, x = network(name)
    old = observe(PermutationSpec.load(OLD / f"{name}.spec.json"), net, x)
    new = observe(infer_spec(net, x), net, x)
    assert {place.numbering for place, _ in new} == {"op"}
    for (place, units), (old_place, old_units) in zip(new, old, strict=True):
        assert place.op == old_place.op
        assert place.argument == old_place.argument
        assert place.component.group == old_place.component.group
        assert torch.equal(units, old_units)


def test_an_old_spec_written_anew_keeps_its_addresses(tmp_path):
    net, x = network("attention")
    spec = PermutationSpec.load(OLD / "attention.spec.json")
    spec.save(tmp_path / "again.json")
    again = PermutationSpec.load(tmp_path / "again.json")
    assert again == spec
    for (_, a), (_, b) in zip(
        observe(spec, net, x), observe(again, net, x), strict=True
    ):
        assert torch.equal(a, b)


def test_the_file_of_the_match_command():
    net, _ = network("mlp")
    b = read_checkpoint(OLD / "b.pt").state_dict
    match = Permutation.load(OLD / "match.perm")
    match.spec.check_state(b)
    a = read_checkpoint(OLD / "a.pt").state_dict
    assert all(torch.equal(a[k], v) for k, v in net.state_dict().items())
    # It brings b nearer to a: that was its purpose.
    moved = match.apply(b)
    before = sum(float((a[k] * b[k]).sum()) for k in a)
    after = sum(float((a[k] * moved[k]).sum()) for k in a)
    assert after > before + 1


def test_a_merged_checkpoint_tells_its_history():
    merged = torch.load(OLD / "merged.pt", weights_only=True)
    history = merged.lightning_rebasin
    spec = PermutationSpec.from_dict(json.loads(history["spec"]))
    first, second = history["permutations"]
    assert first is None
    aligned = Permutation(spec, second)
    a = read_checkpoint(OLD / "a.pt").state_dict
    b = aligned.apply(read_checkpoint(OLD / "b.pt").state_dict)
    weights = read_checkpoint(OLD / "merged.pt").state_dict
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)


@pytest.mark.filterwarnings(
    "ignore:The loaded checkpoint was produced with Lightning"
)
def test_snapshots_of_a_run():
    snapshots = list(load_trajectory(OLD / "snapshots"))
    assert [(s.step, s.epoch) for s in snapshots] == [(0, 0), (1, 0), (2, 0)]
    names = set(Classifier(hidden=4).state_dict())
    for snapshot in snapshots:
        module = Classifier.load_from_checkpoint(snapshot.path)
        state = snapshot.state_dict()
        assert set(state) == names
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[name])


def test_a_barrier_curve(tmp_path):
    curve = BarrierCurve.from_json(OLD / "curve.json")
    assert curve.lambdas == (0.0, 0.25, 0.5, 0.75, 1.0)
    curve.to_json(tmp_path / "again.json")
    curve.to_csv(tmp_path / "again.csv")
    for suffix in ("json", "csv"):
        old = (OLD / f"curve.{suffix}").read_bytes()
        assert (tmp_path / f"again.{suffix}").read_bytes() == old
