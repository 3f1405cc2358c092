import re
import subprocess
import sys
import tomllib
from pathlib import Path

import lightning_rebasin
from lightning_rebasin.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_that_of_the_package_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__ == lightning_rebasin.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", __version__)


def test_asking_for_the_version_imports_no_torch() -> None:
    code = (
        "import sys; from lightning_rebasin import __version__ as version;"
        "print(version, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [__version__, "False"]
