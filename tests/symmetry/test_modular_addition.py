"""Trained networks for (a + b) mod 113: per-head attention tensors, tied embeddings, concatenated embeddings."""

import math

import pytest
import torch
from helpers.models import (
    ModularAdditionMLP,
    ModularAdditionTransformer,
    accuracy,
    load_weights,
    modular_addition_pairs,
    modular_addition_tokens,
)
from helpers.shared import shared_path

from lightning_rebasin.symmetry import (
    Permutation,
    check_equivalence,
    infer_spec,
)

KINDS = {
    "transformer": (ModularAdditionTransformer, modular_addition_tokens),
    "mlp": (ModularAdditionMLP, modular_addition_pairs),
}


@pytest.fixture(
    params=[("transformer", 1), ("transformer", 2), ("mlp", 1), ("mlp", 2)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def trained(request):
    kind, number = request.param
    build, data = KINDS[kind]
    module = build()
    module.load_state_dict(
        load_weights(
            shared_path(
                f"data/checkpoints/modular-addition/{kind}-{number}.pt"
            )
        )
    )
    inputs, sums = data()
    return kind, module.eval(), inputs, sums


def test_trained_network_is_perfect_and_stays_so(trained):
    _, module, inputs, sums = trained
    assert accuracy(module, inputs, sums) == 1.0
    spec = infer_spec(module, inputs[:5])
    p = Permutation.random(spec, torch.Generator().manual_seed(0))
    assert check_equivalence(module, p, inputs[::97]) < 1e-12
    module.load_state_dict(p.apply(module.state_dict()))
    assert accuracy(module, inputs, sums) == 1.0


def log10_factorial(n):
    return math.lgamma(n + 1) / math.log(10)


def test_symmetries_are_the_known_ones(trained):
    kind, module, inputs, _ = trained
    spec = infer_spec(module, inputs[:5])
    if kind == "mlp":  # two embeddings of 256 and one hidden layer of 128
        assert sorted(g.size for g in spec.groups.values()) == [128, 256, 256]
        return
    shapes = sorted(g.shape for g in spec.groups.values())
    # The residual stream, the hidden layer, the heads, and in every head the query-key and the value units.
    assert shapes == [(4,), (4, 32), (4, 32), (128,), (512,)]
    expected = sum(
        log10_factorial(n) for n in (128, 512, 4)
    ) + 8 * log10_factorial(32)
    assert spec.log10_symmetries == pytest.approx(expected)
    acting = {
        (group.shape, name)
        for group in spec.groups.values()
        for name in spec.tensors_of(group.id)
        if group.parent
    }
    assert {name for shape, name in acting if shape == (4, 32)} == {
        f"blocks.0.attn.{letter}"
        for letter in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
    }


def test_embeddings_are_tied():
    spec = infer_spec(
        ModularAdditionTransformer(), modular_addition_tokens()[0][:5]
    )
    assert set(spec.aliases) | set(spec.aliases.values()) == {
        "x_embed",
        "y_embed",
        "embed.W_E",
    }
    assert "blocks.0.attn.mask" not in spec.maps
