"""Random networks: whatever spec is inferred, a random permutation of everything leaves the function unchanged."""

import pytest
import torch
from helpers.random_graphs import INPUT, OPERATIONS, TIME, RandomGraph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_rebasin.symmetry import (
    Permutation,
    infer_spec,
    measure_equivalence,
)

steps = st.tuples(
    st.sampled_from(OPERATIONS),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 11),
)


def judge(program, seed):
    module = RandomGraph(program, seed)
    x = torch.randn(
        2,
        TIME,
        INPUT,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    spec = infer_spec(module, x)
    measured = measure_equivalence(
        module,
        Permutation.random(spec, torch.Generator().manual_seed(seed)),
        x,
    )
    return spec, measured


@pytest.mark.filterwarnings("ignore::lightning_rebasin.errors.UntracedWarning")
@given(st.lists(steps, min_size=1, max_size=9), st.integers(0, 2**16))
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_networks_are_exact(program, seed):
    spec, measured = judge(program, seed)
    assert measured.error < 1e-9, spec


@pytest.mark.filterwarnings("ignore::lightning_rebasin.errors.UntracedWarning")
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_between_two_linear_layers(name):
    """Each alone is exact, and something may be permuted around it."""
    spec, measured = judge(
        [
            ("linear", 0, 0, 4),
            (name, 0, 0, 3),
            ("linear", 0, 0, 4),
            ("linear", 0, 0, 4),
        ],
        1,
    )
    assert measured.error < 1e-10 and measured.sees, spec
    assert spec.log10_symmetries > 2, spec
