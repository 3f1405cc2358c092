"""When the solver is compiled."""

import subprocess
import sys


def test_small_problems_never_load_the_compiler():
    code = (
        "import sys, numpy as np; from lightning_rebasin.assignment import solve_assignment as s;"
        "s(np.random.default_rng(0).standard_normal((100, 100)));"
        "assert 'numba' not in sys.modules, 'numba was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
