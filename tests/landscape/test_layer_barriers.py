"""layer_barriers by hand, against measure_barrier, after matching and after batch-norm reset."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import FEATURES, val_loader
from helpers.models import BatchNormCNN, mlp
from helpers.pairs import two_classifiers
from helpers.untouched import untouched
from torch import nn

from lightning_rebasin import (
    Permutation,
    infer_spec,
    layer_barriers,
    match_weights,
    measure_barrier,
)
from lightning_rebasin.errors import ConfigurationError, StateDictError
from lightning_rebasin.landscape.layer_barriers import layer_sets


def chain(count):
    """A product of scalars w_1·…·w_n with ``L = ½(w_1·…·w_n − 1)²``."""
    net = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(count)))

    def loss(module, x):
        return 0.5 * (module(x) - 1).square().mean()

    return net.double(), loss, [torch.ones(1, 1, dtype=torch.float64)]


def at(*values):
    return {
        f"{k}.weight": torch.tensor([[w]], dtype=torch.float64)
        for k, w in enumerate(values)
    }


def test_a_linear_chain_by_hand():
    """w = (1, 2, 1) and (−1, 1, −2): L(a) = ½, L(b) = ½, so the mean of the full models is ½."""
    net, loss, batch = chain(3)
    found = layer_barriers(
        net, at(1, 2, 1), at(-1, 1, -2), batch, points=3, loss=loss
    )
    assert found.layers == ("0", "1", "2")
    assert found.ends["loss"] == (0.5, 0.5)
    # From a: w_1 → −1 gives products 2, 0, −2; w_2 → 1 gives 2, 1.5, 1; w_3 → −2 gives 2, −1, −4.
    assert found.values["loss"]["a"] == pytest.approx(
        (
            pytest.approx((0.5, 0.5, 4.5)),
            pytest.approx((0.5, 0.125, 0.0)),
            pytest.approx((0.5, 2.0, 12.5)),
        )
    )
    # From b, whose layer is mixed from that of a: −2, 0, 2; 4, 3, 2; −1, 0.5, 2.
    assert found.values["loss"]["b"] == pytest.approx(
        (
            pytest.approx((4.5, 0.5, 0.5)),
            pytest.approx((4.5, 2.0, 0.5)),
            pytest.approx((2.0, 0.125, 0.5)),
        )
    )
    assert found.heights("loss") == {
        "a": pytest.approx((4.0, 0.0, 12.0)),
        "b": pytest.approx((4.0, 4.0, 1.5)),
    }


def test_a_barrier_may_be_negative():
    """Half of the other model's layer is better than both models: products 2 and 0 with 1 between."""
    net, loss, batch = chain(1)
    found = layer_barriers(net, at(3), at(-1), batch, points=[0.5], loss=loss)
    assert found.heights() == {"a": (0.0,), "b": (0.0,)}
    net, loss, batch = chain(2)
    found = layer_barriers(
        net, at(3, 1), at(1, 1.5), batch, points=3, loss=loss
    )
    # L(a) = 2, L(b) = ⅛; from b the second layer goes 1, 1.25, 1.5.
    assert found.heights()["b"][1] == pytest.approx(0.125 - 0.5 * (2 + 0.125))


@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_the_last_cumulative_set_is_the_whole_network(order):
    module, a, b = two_classifiers(batch_norm=True)
    train = list(val_loader(seed=3))
    options = {"points": 3, "batch_norm": train}
    found = layer_barriers(
        module, a, b, val_loader(), mode="cumulative", order=order, **options
    )
    whole = measure_barrier(module, a, b, val_loader(), **options)
    assert set(found.values) == set(whole.values)
    for name, row in whole.values.items():
        for base in "ab":
            assert found.values[name][base][-1] == row
        assert found.ends[name] == (row[0], row[-1])
        height = found.heights(name)["a"][-1]
        assert height == pytest.approx(whole.height(name), abs=1e-12)
    assert found.higher_is_better == whole.higher_is_better
    assert found.samples == 50


def test_cumulative_sets_grow_in_order():
    net, loss, batch = chain(3)
    found = layer_barriers(
        net, at(1, 2, 1), at(-1, 1, -2), batch,
        mode="cumulative", order=["2", "0"], points=2, loss=loss,
    )  # fmt: skip
    assert found.layers == ("2", "+ 0")
    # From a at α = 1: (1, 2, −2), then (−1, 2, −2).
    assert [row[-1] for row in found.values["loss"]["a"]] == [12.5, 4.5]


def test_windows():
    layers = {name: (f"{name}.w",) for name in "abcd"}
    assert layer_sets(layers, "window", 3) == {
        "a … c": ("a.w", "b.w", "c.w"),
        "b … d": ("b.w", "c.w", "d.w"),
    }
    net, loss, batch = chain(3)
    found = layer_barriers(
        net, at(1, 2, 1), at(-1, 1, -2), batch,
        mode="window", width=2, points=2, loss=loss,
    )  # fmt: skip
    # From a at α = 1: (−1, 1, 1), then (1, 1, −2).
    assert [row[-1] for row in found.values["loss"]["a"]] == [2.0, 4.5]
    for width in (0, 5):
        with pytest.raises(ConfigurationError, match="1 to 4"):
            layer_sets(layers, "window", width)
    with pytest.raises(ConfigurationError, match="mode='double'"):
        layer_sets(layers, "double")


def test_after_matching_a_permuted_copy_has_no_barriers():
    torch.manual_seed(0)
    net = mlp(FEATURES, 8, 3)
    spec = infer_spec(net, torch.zeros(1, FEATURES))
    a = {k: v.clone() for k, v in net.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    b = Permutation.random(spec, generator).apply(a)

    def loss(module, batch):
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    naive = layer_barriers(net, a, b, val_loader(), loss=loss)
    match = match_weights(spec, a, b)
    matched = layer_barriers(
        net, a, b, val_loader(), loss=loss, permutation=match.transform
    )
    level = naive.ends["loss"][0]
    for base in "ab":
        for there, here in zip(
            naive.values["loss"][base],
            matched.values["loss"][base],
            strict=True,
        ):
            assert max(abs(v - level) for v in there) > 0.01
            assert max(abs(v - level) for v in here) < 1e-6


def test_statistics_are_re_estimated_for_every_mixture():
    torch.manual_seed(3)
    net = BatchNormCNN()
    a = {k: v.clone() for k, v in net.state_dict().items()}
    b = {k: v.clone() for k, v in BatchNormCNN().state_dict().items()}
    images = [torch.randn(6, 3, 8, 8) for _ in range(2)]

    def loss(module, x):
        return module(x).square().mean()

    found = layer_barriers(
        net, a, b, images, points=3, loss=loss, batch_norm=images
    )
    first = found.layers[0]
    # By hand: the first layer of b in a, with statistics of its own.
    own = [n for n in a if n.startswith(f"{first}.")]
    mixed = {k: b[k] if k in own else a[k] for k in a}
    curve = measure_barrier(
        net, mixed, mixed, images, points=2, loss=loss, batch_norm=images
    )
    plain = layer_barriers(net, a, b, images, points=3, loss=loss)
    assert found.values["loss"]["a"][0][-1] == curve.values["loss"][0]
    assert plain.values["loss"]["a"][0][-1] != curve.values["loss"][0]


def test_layers_by_hand_and_what_is_left_out_stays():
    net, loss, batch = chain(3)
    found = layer_barriers(
        net, at(1, 2, 1), at(-1, 1, -2), batch,
        layers={"both": ["0", "2.weight"]}, points=2, loss=loss,
    )  # fmt: skip
    assert found.layers == ("both",)
    # (−1, 2, −2) from a, (1, 1, 1) from b.
    assert found.values["loss"]["a"][0][-1] == 4.5
    assert found.values["loss"]["b"][0][0] == 0.0


def test_each_full_model_is_evaluated_once():
    net, loss, batch = chain(3)
    calls = []

    def counted(module, x):
        calls.append(1)
        return loss(module, x)

    layer_barriers(
        net, at(1, 2, 1), at(-1, 1, -2), batch, points=3, loss=counted
    )
    assert len(calls) == 2 + 2 * 3 * 2


def test_the_module_is_left_alone():
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True, noise=True)
    train = list(val_loader(seed=3))
    with untouched(module):
        layer_barriers(module, a, b, val_loader(), points=3, batch_norm=train)


def test_wrong_weights_are_named():
    net, loss, batch = chain(2)
    with pytest.raises(StateDictError, match="set of weights 2"):
        layer_barriers(net, at(1, 2), at(1), batch, loss=loss)
