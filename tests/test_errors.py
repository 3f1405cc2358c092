import ast
import builtins
from pathlib import Path

import pytest

from lightning_rebasin import errors

PACKAGE = Path(errors.__file__).parent
#: What somebody who does not know this package would catch.
BUILTIN = {
    "SpecError": ValueError,
    "TraceError": RuntimeError,
    "EquivalenceError": ValueError,
    "TransformError": ValueError,
    "PermutationError": ValueError,
    "StateDictError": ValueError,
    "NonFiniteError": ValueError,
    "AssignmentError": ValueError,
    "DataError": ValueError,
    "CheckpointError": ValueError,
    "OutputError": OSError,
    "ConfigurationError": ValueError,
    "MissingExtraError": ImportError,
    "InternalError": RuntimeError,
}


def named(base: type[BaseException]) -> dict[str, type[BaseException]]:
    """The classes of the module below a base."""
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
    }


def test_every_error_is_listed_here() -> None:
    assert set(named(errors.RebasinError)) == set(BUILTIN)
    everything = {*BUILTIN, *named(errors.RebasinWarning)}
    bases = {"RebasinError", "RebasinWarning"}
    assert set(named(Exception)) == everything | bases


@pytest.mark.parametrize("name", BUILTIN)
def test_one_base_and_the_builtin_both_catch_it_with_its_message(
    name: str,
) -> None:
    for caught in (errors.RebasinError, BUILTIN[name]):
        with pytest.raises(caught, match=r"^'w' is odd$"):
            raise getattr(errors, name)("'w' is odd")


def test_what_is_wrong_with_a_permutation_is_wrong_with_a_transform() -> None:
    assert issubclass(errors.PermutationError, errors.TransformError)


def test_warnings_are_no_errors_and_share_a_base() -> None:
    found = named(errors.RebasinWarning)
    assert found
    for warning in found.values():
        assert issubclass(warning, UserWarning)
        assert not issubclass(warning, errors.RebasinError)


def _names_used(path: Path) -> set[str]:
    """Names that a file reads."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def test_no_class_is_left_that_nothing_raises() -> None:
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "errors.py":
            used |= _names_used(path)
    everything = {*BUILTIN, *named(errors.RebasinWarning)}
    assert everything <= used


#: Builtins that are caught inside the package and made into its own errors.
CAUGHT_INSIDE = {
    ("checkpoints/write.py", "OSError"),
    ("landscape/trajectory.py", "ValueError"),
    # What every mapping raises for a name that is not in it.
    ("checkpoints/lazy.py", "KeyError"),
    # Reported as a damaged file.
    ("checkpoints/distributed.py", "TypeError"),
    # Becomes a limit of the trace.
    ("symmetry/continuous/roles.py", "NotImplementedError"),
    # Ctrl-C, given back as it was; the command line answers it.
    ("cli/landscape/resume.py", "KeyboardInterrupt"),
}


def _builtins_raised(path: Path) -> set[str]:
    """Python's own exceptions in ``raise Kind(...)`` and ``raise Kind``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise):
            kind = node.exc
            kind = kind.func if isinstance(kind, ast.Call) else kind
            if isinstance(kind, ast.Name) and hasattr(builtins, kind.id):
                found.add(kind.id)
    return found


def test_what_is_raised_on_purpose_is_an_error_of_this_package() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        # Python itself looks for this one, where a module or an object lacks a name.
        kinds = _builtins_raised(path) - {"AttributeError"}
        found |= {(where, kind) for kind in kinds}
    assert found == CAUGHT_INSIDE
