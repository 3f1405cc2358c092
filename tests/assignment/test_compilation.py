"""When the solver is compiled, and where the machine code is kept."""

import subprocess
import sys

from lightning_rebasin import compiled as compilation


def test_small_problems_never_load_the_compiler():
    code = (
        "import sys, numpy as np; from lightning_rebasin.assignment import solve_assignment as s;"
        "s(np.random.default_rng(0).standard_normal((100, 100)));"
        "assert 'numba' not in sys.modules, 'numba was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_any_place_for_a_cache_it_still_compiles(monkeypatch):
    real, asked = compilation.njit, []

    def no_cache(*args, **options):
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(compilation, "njit", no_cache)
    double = compilation.compiled()(lambda x: 2 * x)
    assert double(21) == 42
    assert asked == [True, False]
