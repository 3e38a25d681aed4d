"""What we lean on without a promise is still there; else this says what to look at first."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import hsae_lens
from hsae_lens._util import private_names

USED = [(owner, name) for owner, names in private_names.LEANED_ON.items() for name in names]
FOREIGN = ("sae_lens", "transformer_lens")


@pytest.mark.parametrize(("owner", "name"), USED, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_private_method_is_still_there(owner: type, name: str) -> None:
    assert hasattr(owner, name), (
        f"{owner.__module__}.{owner.__name__} has no {name} any more (it had in "
        f"{private_names.READ_IN}): find what took its place, and see _util/private_names.py."
    )


def test_they_were_read_in_the_versions_that_the_tests_run_with() -> None:
    pinned = (Path(__file__).parents[1] / "constraints.txt").read_text().split()
    for package, version in private_names.READ_IN.items():
        assert f"{package}=={version}" in pinned


def test_a_step_is_still_called_as_it_was() -> None:
    from sae_lens import SAETrainer

    assert list(inspect.signature(SAETrainer._train_step).parameters) == ["self", "sae", "sae_in"]


def test_no_other_module_imports_a_private_name() -> None:
    package = Path(hsae_lens.__file__).parent
    found = []
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                if any(part.startswith("_") for part in parts):
                    found.append(file.name)
    assert set(found) == {"private_names.py"}
