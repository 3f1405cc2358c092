"""The arrows between the layers point down, and the lower layers know nothing of Lightning."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_rebasin"
LEVELS = {
    "errors": 0,
    "files": 1,
    "compiled": 1,
    "symmetry": 2,
    "assignment": 2,
    "matching": 3,
    "merging": 3,
    "landscape": 4,
    "checkpoints": 4,
    "plotting": 4,
    "callbacks": 5,
    "modules": 5,
    "demo": 6,
    "cli": 7,
}
MAY_IMPORT_LIGHTNING = 4


def imports(path: Path) -> list[str]:
    """Every module that ``path`` imports, wherever the statement stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
            if node.module == "lightning_rebasin":
                found += [f"lightning_rebasin.{alias.name}" for alias in node.names]
    return found


def layer(module: str) -> str:
    return module.split(".")[1]


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def broken_arrows(path: Path, sources: list[str]) -> list[str]:
    own = layer("lightning_rebasin." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    bad = []
    for module in sources:
        if module.startswith("lightning_rebasin.") and LEVELS.get(layer(module), 0) > LEVELS[own]:
            bad.append(f"{own} imports {module}")
        lightning = module.split(".")[0] in {"lightning", "pytorch_lightning", "torchmetrics"}
        if lightning and LEVELS[own] < MAY_IMPORT_LIGHTNING:
            bad.append(f"{own} imports {module}")
    return bad


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    assert broken_arrows(path, imports(path)) == []


def test_an_arrow_that_points_up_is_seen():
    assert broken_arrows(PACKAGE / "matching" / "x.py", ["lightning_rebasin.callbacks", "lightning.pytorch"]) != []
    assert broken_arrows(PACKAGE / "errors.py", ["lightning_rebasin.files"]) != []


def test_lower_layers_load_without_lightning():
    code = (
        "import sys; sys.modules['lightning'] = None; sys.modules['torchmetrics'] = None\n"
        "import lightning_rebasin as r\n"
        "r.infer_spec, r.match_weights, r.interpolate, r.solve_assignment, r.Permutation, r.read_checkpoint"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_public_names_exist():
    import lightning_rebasin

    for name in lightning_rebasin.__all__:
        assert getattr(lightning_rebasin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lightning_rebasin.nothing  # noqa: B018
