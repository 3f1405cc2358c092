"""Proposals become a spec: what is proved is handed out, what is refused says why, nothing is proposed unasked."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from helpers.attention import ROWS, Attention, halves
from helpers.proofs import largest_error

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry import kinds
from lightning_rebasin.symmetry.continuous import planes as found_planes


@pytest.fixture
def net() -> Attention:
    torch.manual_seed(0)
    return Attention(halves).double()


@pytest.mark.parametrize("wanted", ["plane", "linear", "sign", "orthogonal"])
def test_only_kinds_that_are_asked_for(net, wanted):
    spec = infer_spec(net, ROWS, kinds=[wanted])
    found = {group.kind for group in spec.groups.values()}
    # Values have linear maps, so they have rotations; units of tanh have signs.
    assert found == {"permutation", wanted}
    assert largest_error(net, spec, ROWS) < 1e-9


def test_wrong_pairs_are_refused_by_the_gate_and_the_spec_says_so(net):
    real = found_planes.find_planes

    def lying(spec, passes):  # type: ignore[no-untyped-def]
        found = real(spec, passes)
        ((name, one),) = found.planes.items()
        # Neighbours are no pairs here.
        places = tuple(
            found_planes.Place(
                p.tensor, p.dim, p.index.sort(0).values, p.power
            )
            for p in one.places
        )
        found.planes[name] = found_planes.Planes(one.group, places)
        return found

    with mock.patch.object(kinds, "find_planes", lying):
        spec = infer_spec(net, ROWS, kinds="all")
    assert all(g.kind != "plane" for g in spec.groups.values())
    assert "'plane' change the function" in spec.explain("q.weight")
    # What was right beside it stays.
    assert any(g.kind == "linear" for g in spec.groups.values())
    assert largest_error(net, spec, ROWS) < 1e-9


def test_nothing_to_propose_leaves_the_spec_with_reasons():
    gelu = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)
    )
    spec = infer_spec(gelu, torch.randn(5, 3), kinds="all")
    plain = infer_spec(gelu, torch.randn(5, 3))
    assert dict(spec.groups) == dict(plain.groups)
    assert "aten.gelu" in spec.limits["0"]
