"""The rules of the map that no import contract can express."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import coordinator
import device_agent

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "device_agent", "coordinator", "web")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
PROTOCOL_LIBRARIES = {"attrs", "cattrs", "numpy"}

MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (*PACKAGES, "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported_packages(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_of_the_map_is_looked_at(package):
    assert f"{package}/__init__.py" in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_at_most_400_lines(module):
    assert len((ROOT / module).read_text().splitlines()) <= MAX_MODULE_LINES


@pytest.mark.parametrize("module", MODULES)
def test_a_function_has_at_most_50_lines(module):
    lengths = {
        f"{function.name}, line {function.lineno}": function.end_lineno - function.lineno + 1
        for function in functions(ast.parse((ROOT / module).read_text()))
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_a_module_is_named_after_a_noun_of_the_domain():
    nouns = {module: set(Path(module).with_suffix("").parts) for module in MODULES}
    assert [module for module, parts in nouns.items() if parts & NAMES_THAT_SAY_NOTHING] == []


def test_the_base_dependencies_are_what_the_protocol_imports():
    imported = {
        package
        for path in (ROOT / "protocol").rglob("*.py")
        for package in imported_packages(ast.parse(path.read_text()))
    }
    assert imported - sys.stdlib_module_names - {"protocol"} == PROTOCOL_LIBRARIES

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[^\w-]", dependency)[0] for dependency in project["dependencies"]}
    assert required == PROTOCOL_LIBRARIES


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert coordinator.__version__ == device_agent.__version__ == project["version"]
