"""What `make floors` runs first: the versions it tries are the lowest that are promised."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNTRIED = {"torch", "typing-extensions"}  # constraints-floor.txt says why


def _number(version: str) -> str:
    """4 and 4.0 are 4.0.0."""
    parts = version.split("+")[0].split(".")
    return ".".join([*parts, "0", "0"][:3])


def _tried() -> dict[str, str]:
    lines = (ROOT / "constraints-floor.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: _number(version) for name, version in pairs}


def test_the_floors_that_are_promised_are_those_that_are_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in project["dependencies"]]
    promised = {match[1]: _number(match[2]) for match in found if match}
    assert len(promised) == len(project["dependencies"])
    tried = _tried()
    assert {n: v for n, v in promised.items() if n not in UNTRIED} == {
        n: v for n, v in tried.items() if n not in UNTRIED
    }


# What a package is called where it is installed, and what is installed by other means (a wheel
# without its dependencies; README and docs/install.md say how).
CALLED = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
BY_HAND = {"sae-bench"}
LATE = {"triton_kernels.py"}  # imported itself only where its package is


def test_every_import_is_a_dependency() -> None:
    """What a module imports must be asked for, not brought by luck: later ones in some extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = {_asked(line) for line in project["dependencies"]}
    later = always | BY_HAND
    later |= {_asked(line) for lines in project["optional-dependencies"].values() for line in lines}
    for file in sorted((ROOT / "hsae_lens").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            known = always if node in tree.body and file.name not in LATE else later
            for name in _imported(node) - sys.stdlib_module_names - {"hsae_lens"}:
                package = CALLED.get(name, name.replace("_", "-"))
                assert package in known, f"{file}:{node.lineno}: {name}"


def _asked(requirement: str) -> str:
    return re.split(r"[<>=\[; ]", requirement)[0].replace("_", "-")


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return (
        {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()
    )


@pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / "build" / "floors", reason="not run by `make floors`"
)
def test_in_their_own_environment_the_floors_are_installed() -> None:
    tried = _tried()
    installed = {name: _number(importlib.metadata.version(name)) for name in tried}
    assert installed == tried
