"""What `make floors` runs first: the versions it tries are the lowest that are promised."""

from __future__ import annotations

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


def test_every_import_is_a_dependency() -> None:
    """What is imported at the top of a module must be asked for, not brought by luck."""
    names = {"huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.split("[<>=]", d)[0].replace("_", "-") for d in project["dependencies"]}
    optional = {"triton", "sklearn"}  # behind a test for them
    known = asked | optional | {"hsae-lens"}
    for file in sorted((ROOT / "hsae_lens").rglob("*.py")):
        for name in re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE):
            if name not in sys.stdlib_module_names:
                assert names.get(name, name.replace("_", "-")) in known, f"{file}: {name}"


@pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / "build" / "floors", reason="not run by `make floors`"
)
def test_in_their_own_environment_the_floors_are_installed() -> None:
    tried = _tried()
    installed = {name: _number(importlib.metadata.version(name)) for name in tried}
    assert installed == tried
