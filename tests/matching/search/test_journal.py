"""A matching that is stopped between any two visits goes on in another process as if nothing had happened."""

from __future__ import annotations

import pytest
import torch
from helpers.planted import chain

from lightning_rebasin import match_weights
from lightning_rebasin.matching.search.journal import NoJournal, Standing
from lightning_rebasin.symmetry import PermutationSpec


class Killed(Exception):
    """Stands for the end of a process."""


class Paper:
    """A journal that keeps everything, and ends the process at one entry."""

    due = True

    def __init__(
        self, last: Standing | None = None, most: int | None = None
    ) -> None:
        self.last = last
        self.written = 0
        self._most = most

    def read(self) -> Standing | None:
        return self.last

    def write(self, standing: Standing) -> None:
        self.last = standing
        self.written += 1
        if self.written == self._most:
            raise Killed


def problem() -> tuple[
    PermutationSpec, dict[str, torch.Tensor], dict[str, torch.Tensor]
]:
    table, a, b = chain((8, 24, 20, 24, 5), 4)
    return PermutationSpec.from_table(table, a), a, b


@pytest.mark.parametrize("init", [None, "identity", "random"])
def test_stopped_after_any_visit_the_result_is_the_same(
    init: str | None,
) -> None:
    spec, a, b = problem()
    paper = Paper()
    whole = match_weights(spec, a, b, init=init, seed=3, journal=paper)
    assert paper.written > 6
    for most in range(1, paper.written + 1):
        first = Paper(most=most)
        with pytest.raises(Killed):
            match_weights(spec, a, b, init=init, seed=3, journal=first)
        rest = Paper(first.last)
        found = match_weights(spec, a, b, init=init, seed=3, journal=rest)
        assert found.permutation == whole.permutation
        assert found.objective == pytest.approx(whole.objective, rel=1e-12)
        for own, of_whole in zip(found.descents, whole.descents, strict=True):
            assert own.start == of_whole.start
            assert own.objectives == pytest.approx(
                of_whole.objectives, rel=1e-5
            )
        # Nothing that was written down is done again, but the annealing that came before a descent's first visit.
        assert rest.written == paper.written - most


def test_what_need_not_be_looked_at_again_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, a, b = problem()
    paper = Paper()
    match_weights(spec, a, b, init="identity", journal=paper)
    whole = paper.written
    # Just before the last visit everything has settled.
    first = Paper(most=whole - 2)
    with pytest.raises(Killed):
        match_weights(spec, a, b, init="identity", journal=first)
    assert first.last is not None
    assert len(first.last.settled) == 3
    from lightning_rebasin.matching.costs.cache import CostCache

    built: list[str] = []
    matrix = CostCache.matrix

    def watched(
        self: CostCache, group: str, flats: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        built.append(group)
        return matrix(self, group, flats)

    monkeypatch.setattr(CostCache, "matrix", watched)
    match_weights(spec, a, b, init="identity", journal=Paper(first.last))
    assert not built


def test_no_journal_keeps_nothing() -> None:
    spec, a, b = problem()
    journal = NoJournal()
    assert (
        match_weights(spec, a, b, journal=journal).permutation
        == match_weights(spec, a, b).permutation
    )
    assert journal.read() is None and not journal.due
