"""The parameters of one model as the objective sees them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_rebasin.matching.parameters import Parameters
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Pair = tuple[PermutationSpec, dict[str, torch.Tensor], dict[str, torch.Tensor]]
#: Up to this many numbers a tensor is looked at by NumPy.
SMALL = 1 << 16


def test_norms_by_definition(pair: Pair) -> None:
    _, a, _ = pair
    expected = {n: np.linalg.norm(t.double().numpy()) for n, t in a.items()}
    assert Parameters(a, a).norms == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [7, SMALL, SMALL + 1])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64]
)
def test_norms_in_every_dtype_and_size(dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(size, generator=generator, dtype=torch.complex64)
    tensor = tensor if dtype.is_complex else tensor.real.to(dtype)
    wide = tensor.to(torch.complex128).numpy()
    expected = math.sqrt(float(np.vdot(wide, wide).real))
    found = Parameters({"w": tensor}, ["w"]).norms
    assert found == {"w": pytest.approx(expected, rel=1e-5)}


def test_huge_and_tiny_numbers_have_their_norms() -> None:
    extreme = {
        "x": torch.tensor([3e30, 4e30]),
        "y": torch.tensor([3e-30, 4e-30]),
        "z": torch.zeros(3),
    }
    extreme |= {
        f"{name} with two axes": tensor[None]
        for name, tensor in extreme.items()
    }
    expected = {
        name: {"x": 5e30, "y": 5e-30, "z": 0.0}[name[0]] for name in extreme
    }
    assert Parameters(extreme, extreme).norms == pytest.approx(
        expected, rel=1e-6, abs=0.0
    )


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_large_tensors_of_huge_and_tiny_numbers(scale: float) -> None:
    tensor = torch.full((4 * SMALL,), scale)
    expected = float(tensor[0].double()) * 512
    found = Parameters({"w": tensor}, ["w"]).norms["w"]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("size", [3, SMALL + 1])
def test_a_norm_is_finite_only_if_all_numbers_are(
    size: int, bad: float
) -> None:
    tensor = torch.ones(size)
    tensor[-1] = bad
    found = Parameters({"w": tensor, "v": torch.ones(1)}, ["w", "v"]).norms
    assert not math.isfinite(found["w"])
    assert found["v"] == 1.0


def test_small_tensors_are_looked_at_in_double_precision() -> None:
    weight = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    wide = Parameters({"w": weight}, ["w"]).wide("w")
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, weight.double().flatten().numpy())


def test_only_what_counts_is_kept_and_without_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    state = {"w": weight, "running_mean": torch.ones(2)}
    found = Parameters(state, ["w"])
    assert list(found.tensors) == list(found.norms) == ["w"]
    assert not found.tensors["w"].requires_grad
    assert found.tensors["w"].data_ptr() == weight.data_ptr()
    assert found.norms == {"w": 5.0}


def test_a_model_without_parameters_and_an_empty_tensor() -> None:
    assert Parameters({}, []).norms == {}
    assert Parameters({"w": torch.empty(0, 3)}, ["w"]).norms == {"w": 0.0}
