"""What docstrings refer to is there: every ``:func:`name``` and the like of the package."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hsae_lens

PACKAGE = Path(hsae_lens.__file__).parent
REFERENCE = re.compile(r":(?:func|class|data|meth|mod|attr|exc|obj):`~?\.?([^`]+)`")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> Any:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return importlib.import_module(".".join(part for part in parts if part != "__init__"))


def referred(file: Path) -> Iterator[tuple[str, str | None]]:
    """The names that a file's docstrings refer to (a constant's or field's too), with the class."""

    def within(node: ast.AST, owner: str | None) -> Iterator[tuple[str, str | None]]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield from ((name, owner) for name in REFERENCE.findall(str(node.value.value)))
        owner = node.name if isinstance(node, ast.ClassDef) else owner
        for child in ast.iter_child_nodes(node):
            yield from within(child, owner)

    yield from within(ast.parse(file.read_text(encoding="utf-8")), None)


def leads_on(place: Any, names: list[str]) -> bool:
    """Whether names lead on from somewhere, each an attribute or a field of the one before."""
    for name in names:
        if not hasattr(place, name) and name not in getattr(place, "__annotations__", {}):
            return False
        place = getattr(place, name, None)
    return True


def is_path(names: list[str]) -> bool:
    """Whether they are a module's, and what is in it."""
    for end in range(len(names), 0, -1):
        try:
            return leads_on(importlib.import_module(".".join(names[:end])), names[end:])
        except ImportError:
            continue
    return False


def test_what_a_docstring_refers_to_is_there() -> None:
    """In its module or class, at its full path, or one of our public names: each is there once."""
    ours: dict[str, Any] = {}
    for file in FILES:
        module = module_of(file)
        ours |= {name: thing for name, thing in vars(module).items()
                 if getattr(thing, "__module__", None) == module.__name__}  # fmt: skip
    lost, n = [], 0
    for file in FILES:
        module = module_of(file)
        for name, owner in referred(file):
            n += 1
            first, *rest = name.split(".")
            places = [module, builtins, *([getattr(module, owner, None)] if owner else [])]
            if not (
                any(leads_on(place, [first, *rest]) for place in places)
                or (first in ours and leads_on(ours[first], rest))
                or is_path([first, *rest])
            ):
                lost.append(f"{file.relative_to(PACKAGE)}: {name}")
    assert n > 100
    assert not lost, "\n".join(lost)
