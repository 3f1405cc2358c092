from typing import Any

import pytest
from numba import njit

from lightning_rebasin.compiled import compiled


def test_nothing_is_compiled_before_it_is_called() -> None:
    halve: Any = compiled()(lambda x: x / 2)
    assert halve.signatures == []
    assert halve(3.0) == 1.5
    assert len(halve.signatures) == 1


def test_liberties_reach_the_compiler_and_other_threads_run_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def fake(**options: Any) -> Any:
        seen.append(options)
        return lambda function: function

    monkeypatch.setattr("lightning_rebasin.compiled.njit", fake)
    compiled("nnan", "nsz")(abs)
    fast = {"nnan", "nsz"}
    assert seen == [{"cache": True, "fastmath": fast, "nogil": True}]


def test_without_any_place_for_a_cache_it_still_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked = njit, []

    def no_cache(*args: Any, **options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr("lightning_rebasin.compiled.njit", no_cache)
    double = compiled()(lambda x: 2 * x)
    assert double(21) == 42
    assert asked == [True, False]
