"""Measures how easy the house is to live in: ``python tests/house.py [FOLDER]`` prints one row per room.

Complexity of a function is one, plus one per branch (``if``, loop, ``except``, conditional expression, ``match`` case,
``assert``), per comprehension and its conditions, and per further operand of a boolean operator.  Nested functions
count with the function around them.  Expression nodes are those of the syntax tree, without docstrings, per line that
holds code; comments are lines that are nothing else.  A module has a mirrored test if the folder of the same name under
``tests`` holds ``test_<module>.py``.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lightning_rebasin"
_BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.match_case,
    ast.Assert,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class FunctionSize:
    """One function or method and its complexity."""

    where: str
    name: str
    complexity: int


@dataclass(frozen=True)
class FileSize:
    """What one source file holds."""

    path: Path
    code_lines: int
    comment_lines: int
    nodes: int
    functions: tuple[FunctionSize, ...]
    mirrored: bool | None
    lazy_imports: int


@dataclass(frozen=True)
class RoomSize:
    """The sums of some files."""

    name: str
    files: tuple[FileSize, ...]

    @property
    def nodes_per_line(self) -> float:
        """Expression nodes per line of code."""
        return sum(f.nodes for f in self.files) / max(
            sum(f.code_lines for f in self.files), 1
        )

    @property
    def comments_per_hundred(self) -> float:
        """Comment lines per 100 lines of code and comments."""
        comments = sum(f.comment_lines for f in self.files)
        return (
            100
            * comments
            / max(sum(f.code_lines for f in self.files) + comments, 1)
        )

    @property
    def functions(self) -> tuple[FunctionSize, ...]:
        """All functions of the room."""
        return tuple(
            function for file in self.files for function in file.functions
        )

    @property
    def complex_share(self) -> float:
        """Share of the functions whose complexity is over 10."""
        over = sum(function.complexity > 10 for function in self.functions)
        return over / max(len(self.functions), 1)

    @property
    def worst(self) -> FunctionSize:
        """The most complex function."""
        return max(
            self.functions,
            key=lambda function: function.complexity,
            default=FunctionSize("", "-", 0),
        )

    @property
    def mirrored(self) -> tuple[int, int]:
        """How many modules have a mirrored test, of how many that could."""
        able = [file for file in self.files if file.mirrored is not None]
        return sum(bool(file.mirrored) for file in able), len(able)


def complexity(function: ast.AST) -> int:
    """Complexity of one function."""
    total = 1
    for node in ast.walk(function):
        if isinstance(node, _BRANCHES):
            total += 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
    return total


def outer_functions(
    tree: ast.AST,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods, but not those inside other functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _FUNCTIONS):
            yield node
        else:
            yield from outer_functions(node)


def _docstrings(tree: ast.AST) -> list[ast.Expr]:
    """The statements that are docstrings."""
    found = []
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS))
        if documented and ast.get_docstring(node, clean=False) is not None:
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            found.append(statement)
    return found


def _lines(text: str, docstrings: Sequence[ast.Expr]) -> tuple[int, int]:
    """Lines that hold code (docstrings left out), and lines that are only a comment."""
    skipped = {
        line
        for d in docstrings
        for line in range(d.lineno, (d.end_lineno or d.lineno) + 1)
    }
    code: set[int] = set()
    comments: set[int] = set()
    blank = (
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in blank:
            code.update(range(token.start[0], token.end[0] + 1))
    code -= skipped
    return len(code), len(comments - code)


def measure_file(path: Path, root: Path = ROOT) -> FileSize:
    """Measure one file of the package."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    docstrings = _docstrings(tree)
    # A docstring is one expression node: its text.
    nodes = sum(isinstance(node, ast.expr) for node in ast.walk(tree)) - len(
        docstrings
    )
    code, comments = _lines(text, docstrings)
    inside = path.relative_to(root / PACKAGE)
    functions = tuple(
        FunctionSize(str(inside), f.name, complexity(f))
        for f in outer_functions(tree)
    )
    test = root / "tests" / inside.parent / f"test_{path.stem}.py"
    mirrored = None if path.stem == "__init__" else test.exists()
    lazy = sum(
        _own_imports(f) for f in ast.walk(tree) if isinstance(f, _FUNCTIONS)
    )
    return FileSize(inside, code, comments, nodes, functions, mirrored, lazy)


def _own_imports(function: ast.AST) -> int:
    """Imports of the own package inside a function."""
    found = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom | ast.Import)
    ]
    names = [
        (n.module or "") if isinstance(n, ast.ImportFrom) else n.names[0].name
        for n in found
    ]
    return sum(name.split(".")[0] == PACKAGE for name in names)


def measure(root: Path = ROOT) -> dict[str, RoomSize]:
    """Every room of the package by its folder, and ``"all"``."""
    files = [
        measure_file(path, root)
        for path in sorted((root / PACKAGE).rglob("*.py"))
    ]
    rooms: dict[str, list[FileSize]] = {}
    for file in files:
        rooms.setdefault(str(file.path.parent), []).append(file)
    sizes = {
        name: RoomSize(name, tuple(own)) for name, own in sorted(rooms.items())
    }
    sizes["all"] = RoomSize("all", tuple(files))
    return sizes


def main(arguments: Sequence[str]) -> None:
    """Print the table; with ``-v`` also every function over 10."""
    given = [a for a in arguments if not a.startswith("-")]
    rooms = measure(Path(given[0]) if given else ROOT)
    print(
        f"{'room':36} {'files':>5} {'lines':>6} {'nodes/line':>10} {'comments %':>10} {'over 10':>8} worst"
    )
    for room in rooms.values():
        lines = sum(file.code_lines for file in room.files)
        have, able = room.mirrored
        numbers = f"{room.nodes_per_line:10.2f} {room.comments_per_hundred:10.1f} {room.complex_share:8.1%}"
        lazy = sum(file.lazy_imports for file in room.files)
        worst = f"{room.worst.complexity} {room.worst.name}"
        print(
            f"{room.name:36} {len(room.files):5} {lines:6} {numbers} {worst}; mirrored {have}/{able}; lazy {lazy}"
        )
    if "-v" in arguments:
        for function in sorted(
            rooms["all"].functions, key=lambda f: -f.complexity
        ):
            if function.complexity > 10:
                print(function.complexity, function.where, function.name)
        for file in rooms["all"].files:
            if file.mirrored is False:
                print("no mirrored test:", file.path)


if __name__ == "__main__":
    main(sys.argv[1:])
