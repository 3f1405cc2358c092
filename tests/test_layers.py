"""The arrows between layers and rooms point down, nothing is imported in a circle, and lower layers know no Lightning.

Inside ``symmetry`` and ``matching`` every room names the rooms it may import.  Imports inside functions of our own
package hide circles, so there are three doors only, by name: the compiled kernels (numba takes a second to load), the
pictures (matplotlib is optional) and the command line (its help must not wait for torch).
"""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_rebasin"
LEVELS = {
    "errors": 0,
    "version": 0,
    "files": 1,
    "compiled": 1,
    "symmetry": 2,
    "assignment": 2,
    "matching": 3,
    "trees": 3,
    "merging": 3,
    "landscape": 4,
    "checkpoints": 4,
    "inputs": 4,
    "plotting": 5,
    "callbacks": 6,
    "modules": 6,
    "demo": 7,
    "cli": 8,
}
#: For each room (or file) inside a layer, the rooms of the same layer that it may import.
ROOMS = {
    "symmetry": {
        "spec": set(),
        "run": set(),
        "trace": {"run"},
        "actions": {"spec"},
        "permutations": {"spec", "trace"},
        "continuous": {"spec", "trace", "permutations"},
        "edit": {"spec", "actions"},
        "proof": {"spec", "run", "actions"},
        "observe": {"spec", "trace"},
        "declared": {"spec", "run", "actions", "proof", "observe"},
        "kinds": {"spec", "run", "permutations", "continuous", "proof"},
        "untied": {"spec", "run"},
        "infer": {
            "spec",
            "run",
            "actions",
            "trace",
            "permutations",
            "kinds",
            "declared",
            "untied",
        },
        "override": {"edit"},
    },
    "matching": {
        "costs": set(),
        "steps": set(),
        "parameters": set(),
        "objective": {"costs", "parameters"},
        "importance": set(),
        "result": set(),
        "search": {
            "costs",
            "steps",
            "parameters",
            "objective",
            "importance",
            "result",
        },
        "many": {"costs", "steps", "objective", "importance", "search"},
        "activation": {"steps", "search", "result"},
        "straight_through": {"search", "result", "importance"},
    },
}
#: Who may import our own package inside a function, and what.
DOORS = {
    "compiled kernels": (
        "lightning_rebasin.assignment.kernels",
        "lightning_rebasin.compiled",
    ),
    "pictures": ("lightning_rebasin.plotting",),
    "command line": ("lightning_rebasin.cli",),
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
                found += [
                    f"lightning_rebasin.{alias.name}" for alias in node.names
                ]
    return found


def layer(module: str) -> str:
    return module.split(".")[1]


SOURCES = sorted(
    p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"
)


def broken_arrows(path: Path, sources: list[str]) -> list[str]:
    own = layer(
        "lightning_rebasin."
        + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    )
    bad = []
    for module in sources:
        if (
            module.startswith("lightning_rebasin.")
            and LEVELS.get(layer(module), 0) > LEVELS[own]
        ):
            bad.append(f"{own} imports {module}")
        lightning = module.split(".")[0] in {
            "lightning",
            "pytorch_lightning",
            "torchmetrics",
        }
        if lightning and LEVELS[own] < MAY_IMPORT_LIGHTNING:
            bad.append(f"{own} imports {module}")
    return bad


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_arrows_point_down(path):
    # ``curve.plot()`` and its like import the pictures when they are called: a door, see DOORS.
    late = [
        name
        for name in lazy_imports(path.read_text())
        if name.startswith(DOORS["pictures"])
    ]
    assert (
        broken_arrows(
            path, [name for name in imports(path) if name not in late]
        )
        == []
    )


def test_an_arrow_that_points_up_is_seen():
    assert (
        broken_arrows(
            PACKAGE / "matching" / "x.py",
            ["lightning_rebasin.callbacks", "lightning.pytorch"],
        )
        != []
    )
    assert (
        broken_arrows(PACKAGE / "errors.py", ["lightning_rebasin.files"]) != []
    )


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


def room(module: str) -> tuple[str, str]:
    """Layer and room of a module of the package: ``("symmetry", "spec")`` for ``….symmetry.spec.values``."""
    parts = module.split(".")
    return parts[1], parts[2] if len(parts) > 2 else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def broken_rooms(name: str, sources: list[str]) -> list[str]:
    """Imports from rooms of the same layer that the room of ``name`` may not know."""
    own_layer, own = room(name)
    rooms = ROOMS.get(own_layer)
    if rooms is None or not own:
        return []
    assert own in rooms, f"{name}: the room {own!r} is not listed in ROOMS"
    bad = []
    for source in sources:
        if not source.startswith(f"lightning_rebasin.{own_layer}.") or room(
            source
        )[1] in {
            own,
            *rooms[own],
        }:
            continue
        bad.append(f"{name} imports {source}")
    return bad


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_rooms_know_only_the_rooms_below(path):
    assert broken_rooms(name_of(path), imports(path)) == []


def test_a_room_that_reaches_up_is_seen():
    assert (
        broken_rooms(
            "lightning_rebasin.symmetry.spec.values",
            ["lightning_rebasin.symmetry.proof.gate"],
        )
        != []
    )
    assert (
        broken_rooms(
            "lightning_rebasin.matching.costs.terms",
            ["lightning_rebasin.matching.search.weight"],
        )
        != []
    )
    assert (
        broken_rooms(
            "lightning_rebasin.symmetry.trace.tape",
            ["lightning_rebasin.symmetry.run.examples"],
        )
        == []
    )


def imports_of(tree: ast.AST) -> list[str]:
    """Modules of the own package that the statements of a tree import, submodules named by ``from`` included."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names),
            ]
    return [
        name for name in found if name.split(".")[0] == "lightning_rebasin"
    ]


def lazy_imports(text: str) -> list[str]:
    """Modules of the own package that functions import."""
    functions = [
        n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(
        {name for function in functions for name in imports_of(function)}
    )


def without_door(name: str, lazy: list[str]) -> list[str]:
    """Imports inside functions that go through none of the three doors."""
    if name.startswith(DOORS["command line"]):
        return []
    allowed = (*DOORS["compiled kernels"], *DOORS["pictures"])
    return [source for source in lazy if not source.startswith(allowed)]


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_functions_import_the_own_package_through_three_doors_only(path):
    assert without_door(name_of(path), lazy_imports(path.read_text())) == []


def test_an_import_inside_a_function_is_seen():
    text = "def f():\n    from lightning_rebasin.symmetry.infer import infer_spec\n"
    assert (
        without_door(
            "lightning_rebasin.symmetry.spec.spec", lazy_imports(text)
        )
        != []
    )
    assert (
        without_door("lightning_rebasin.cli.merge", lazy_imports(text)) == []
    )


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Sets of modules that reach each other."""
    names = sorted(graph)
    number = {name: i for i, name in enumerate(names)}
    edges = [
        (number[a], number[b])
        for a in names
        for b in graph[a]
        if b in number and a != b
    ]
    # SciPy before 1.13 takes short numbers only.
    rows, columns = np.array(edges, dtype=np.int32).reshape(-1, 2).T
    matrix = coo_array(
        (np.ones(len(edges)), (rows, columns)), shape=(len(names), len(names))
    )
    found = connected_components(matrix, connection="strong")[1]
    members = [
        tuple(name for name in names if found[number[name]] == k)
        for k in set(found.tolist())
    ]
    return [circle for circle in members if len(circle) > 1]


def import_graph() -> dict[str, set[str]]:
    """Which module imports which, wherever the statement stands; a package stands for its ``__init__``."""
    files = {name_of(path): path for path in SOURCES}
    graph = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        # Through the doors an import comes late on purpose.
        late = (
            set()
            if name.startswith(DOORS["command line"])
            else set(lazy_imports(path.read_text()))
        )
        graph[name] = {
            source for source in imports_of(tree) if source in files
        } - late
    return graph


def test_nothing_is_imported_in_a_circle():
    assert circles(import_graph()) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [
        ("a", "b", "c")
    ]
