"""What `prefopt` imports is what its project file declares."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["dependencies"])}

OPTIONAL = {"mpmath": "test", "trl": "compare"}
"""Modules that some commands can use and all others do without, with the extra that installs them."""

UNUSED = {"evaluate": "the metrics are to become its modules"}
"""Dependencies that nothing imports yet, and why they are declared."""


def imports(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports, inside functions too, but not those of annotations alone."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(path.read_text(encoding="utf-8")))


def imported() -> dict[str, str]:
    """Third-party modules, with a file that imports each."""
    found = {}
    for path in sorted((ROOT / "prefopt").rglob("*.py")):
        for name in imports(path):
            if name != "prefopt" and name not in sys.stdlib_module_names:
                found.setdefault(name, str(path.relative_to(ROOT)))
    return found


IMPORTED = imported()


def distributions(module: str) -> set[str]:
    return {canonicalize_name(name) for name in packages_distributions().get(module, [module])}


def test_an_import_inside_a_function_counts_and_one_for_annotations_does_not(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "import json\nif TYPE_CHECKING:\n    import a\ndef f():\n    from b.c import d\n    import e.f as g\n"
    )
    assert list(imports(tmp_path / "x.py")) == ["json", "b", "e"]


@pytest.mark.parametrize("module", sorted(set(IMPORTED) - set(OPTIONAL)))
def test_what_is_imported_is_declared(module: str) -> None:
    assert distributions(module) & set(DEPENDENCIES), f"{IMPORTED[module]} imports {module}"


@pytest.mark.parametrize("module", OPTIONAL)
def test_what_is_optional_is_in_its_extra(module: str) -> None:
    assert module in IMPORTED
    assert not distributions(module) & set(DEPENDENCIES)
    extra = {canonicalize_name(Requirement(one).name) for one in PROJECT["optional-dependencies"][OPTIONAL[module]]}
    assert distributions(module) & extra


def test_what_is_declared_is_imported() -> None:
    used = {name for module in IMPORTED for name in distributions(module)}
    assert set(DEPENDENCIES) - used == set(UNUSED)


def test_the_pinned_versions_are_among_those_declared() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines)}
    for name, requirement in DEPENDENCIES.items():
        assert requirement.specifier.contains(pins[name]), name
