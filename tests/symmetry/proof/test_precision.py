"""Computing in float64 whatever a model was made for: casts rewritten, weights widened while they run."""

from __future__ import annotations

import pytest
import torch
from helpers.algebra import randomly
from helpers.models import mlp, randomise
from helpers.tables import MLP_TABLE
from torch import Tensor, nn

from lightning_rebasin.symmetry import (
    PermutationSpec,
    check_equivalence,
    measure_equivalence,
)
from lightning_rebasin.symmetry.proof.precision import (
    ExactMode,
    widen,
    widen_while_running,
)


class UpCasting(nn.Module):
    """Root-mean-square norm in hard-coded float32, an attention mask made in float32, half-precision rounding."""

    def __init__(self, cast: torch.dtype) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.ones(16))
        self.cast = cast

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).to(self.cast)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        mask = torch.zeros(16, dtype=torch.float32)
        result: Tensor = self.b((self.scale * h.to(x.dtype)).relu() + mask)
        return result


@pytest.mark.parametrize(
    "cast", [torch.float32, torch.bfloat16, torch.float16]
)
def test_hard_coded_casts_do_not_hide_errors(cast: torch.dtype) -> None:
    module = randomise(UpCasting(cast))
    table = {
        "a.weight": ("h", None),
        "a.bias": ("h",),
        "scale": ("h",),
        "b.weight": (None, "h"),
    }
    p = randomly(PermutationSpec.from_table(table, module.state_dict()))
    measured = measure_equivalence(module, p, torch.randn(3, 4))
    assert measured.error < 1e-12 and not measured.rounded


def test_rounding_that_stays_gets_the_looser_tolerance() -> None:
    class Rounding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 64, 64)

        def forward(self, x: Tensor) -> Tensor:
            bits: Tensor = self.net(x).view(torch.int64)
            cut = (bits >> 30 << 30).view(torch.float64).view(torch.float32)
            return cut.view(-1, 64, 2)[..., 1].sum(-1)

    module = randomise(Rounding()).double()
    table = {f"net.{name}": axes for name, axes in MLP_TABLE.items()}
    spec = PermutationSpec.from_table(table, module.state_dict())
    measured = measure_equivalence(module, randomly(spec), torch.randn(3, 4))
    assert measured.rounded and measured.tolerance == 1e-4 and measured.equal


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_dtype_of_the_model(dtype: torch.dtype) -> None:
    module = randomise(mlp(4, 8, 2)).to(dtype)
    spec = PermutationSpec.from_table(MLP_TABLE, module.state_dict())
    assert (
        check_equivalence(module, randomly(spec), torch.randn(3, 4).to(dtype))
        < 1e-12
    )


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (torch.float16, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float32, torch.float64),
        (torch.complex64, torch.complex128),
    ],
)
def test_widening_keeps_the_values(
    narrow: torch.dtype, wide: torch.dtype
) -> None:
    tensor = torch.tensor([0.5, -3.0]).to(narrow)
    assert widen(tensor).dtype is wide
    assert widen(tensor).tolist() == tensor.tolist()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.complex128, torch.int32, torch.bool]
)
def test_what_is_wide_or_no_number_stays_itself(dtype: torch.dtype) -> None:
    tensor = torch.ones(2).to(dtype)
    assert widen(tensor) is tensor


#: Not a float32 number.
THIRD = torch.tensor([1 / 3], dtype=torch.float64)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16]
)
def test_casts_to_less_keep_every_digit(dtype: torch.dtype) -> None:
    with ExactMode() as mode:
        cast = THIRD.to(dtype)
        made = torch.zeros(1, dtype=dtype)
        like = torch.zeros_like(THIRD, dtype=dtype)
    assert cast.dtype is made.dtype is like.dtype is torch.float64
    assert torch.equal(cast, THIRD)
    assert not mode.rounded
    # Other casts are the user's own business.
    with ExactMode():
        assert THIRD.to(torch.int64).tolist() == [0]


def test_bits_read_as_less_are_remembered_as_rounding() -> None:
    with ExactMode() as mode:
        bits = THIRD.view(torch.int64)
        assert not mode.rounded
        assert bits.view(torch.float32).dtype is torch.float32
    assert mode.rounded


def test_two_precisions_meet_in_the_wider_one() -> None:
    weight = torch.tensor([[0.1]])
    x = THIRD[None]
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(weight, x)
    with ExactMode() as mode:
        product = torch.mm(weight, x)
    assert torch.equal(product, weight.double() @ x)
    assert not mode.rounded


def test_what_is_written_to_stays_the_tensor_that_it_is() -> None:
    target = torch.zeros(1)
    with ExactMode() as mode:
        result = target.add_(THIRD)
    assert result is target
    assert target.item() == pytest.approx(1 / 3, rel=1e-6)
    # Its memory has no room for more, and that is said.
    assert mode.rounded


def test_narrow_weights_are_widened_by_what_computes_with_them() -> None:
    weight = torch.tensor([[0.1, 0.7], [0.3, 0.9]])
    with ExactMode(narrow=True) as mode:
        transposed = weight.t()
        product = torch.mm(weight, transposed)
    assert transposed.dtype is torch.float32
    assert torch.equal(product, weight.double() @ weight.double().t())
    assert not mode.rounded
    with ExactMode(narrow=False) as mode:
        product = torch.mm(weight, weight.t())
    assert product.dtype is torch.float32
    assert mode.rounded


class Watched(nn.Module):
    """Notes the dtype of its weight while it runs; calls itself, or fails, if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.kept = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(2))
        self.seen: list[torch.dtype] = []

    def forward(self, depth: int = 0, *, fail: bool = False) -> None:
        if fail:
            raise RuntimeError("on purpose")
        if depth:
            self(depth - 1)
        self.seen.append(self.weight.dtype)


def test_weights_are_wide_exactly_while_their_owner_runs() -> None:
    net = Watched()
    memory = net.weight.data_ptr()
    widen_while_running(net)
    assert net.weight.dtype is torch.float32
    # Buffers may be written to, so they are wide for good.
    assert net.get_buffer("scale").dtype is torch.float64
    net()
    assert net.seen == [torch.float64]
    assert net.weight.dtype is torch.float32
    assert net.weight.data_ptr() == memory
    assert net.kept.dtype is torch.float64


def test_the_innermost_of_nested_calls_does_not_end_it() -> None:
    net = Watched()
    widen_while_running(net)
    net(depth=2)
    assert net.seen == 3 * [torch.float64]
    assert net.weight.dtype is torch.float32


def test_weights_are_put_back_after_an_error() -> None:
    net = Watched()
    widen_while_running(net)
    with pytest.raises(RuntimeError, match="on purpose"):
        net(fail=True)
    assert net.weight.dtype is torch.float32
    net()
    assert net.seen == [torch.float64]
    assert net.weight.dtype is torch.float32
