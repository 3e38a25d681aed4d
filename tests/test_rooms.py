"""The order of the rooms: each imports only rooms below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import hsae_lens

PACKAGE = Path(hsae_lens.__file__).parent
ROOMS = ("_util", "objective", "models", "sae", "releases", "evaluation", "circuits", "training",
         "conversion", "comparison", "pilot", "cli")  # fmt: skip
"""From the lowest to the highest, as in README's tree."""
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """Every package and module that a file imports, at its top or later, with where it says so."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        where = f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{where} imports relative to itself; write hsae_lens.ROOM"
            yield from ((f"{node.module}.{alias.name}", where) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, where) for alias in node.names)


def test_the_rooms_are_these() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert names == {*ROOMS, "__init__.py", "py.typed"}


def test_tests_have_the_same_rooms() -> None:
    rooms = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir()}
    assert set(ROOMS) <= rooms


def test_each_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for file in FILES:
        room = file.relative_to(PACKAGE).parts[0]
        for name, where in imported(file) if room in ROOMS else ():
            parts = name.split(".")
            if parts[0] != "hsae_lens":
                continue
            other = parts[1] if len(parts) > 1 else ""
            if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room):
                wrong.append(f"{where}: {name}")
    assert not wrong, "\n".join(wrong)


def test_the_objective_needs_torch_alone() -> None:
    allowed = {"torch", "triton", "numpy", "hsae_lens", "__future__"}
    foreign = {
        f"{where}: {name}"
        for file in (PACKAGE / "objective").rglob("*.py")
        for name, where in imported(file)
        if (top := name.split(".")[0]) not in allowed and top not in sys.stdlib_module_names
    }
    assert not foreign


WITHOUT_SAELENS = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        bare = name.split(".")[0] not in {"sae_lens", "transformer_lens", "transformers", "yaml",
                                          "huggingface_hub", "datasets", "pandas", "matplotlib"}
        return self.finder.find_spec(name, path, target) if bare else None

sys.meta_path = [Without(finder) for finder in sys.meta_path]
import torch
import hsae_lens

pre = torch.randn(6, 9)
code = hsae_lens.OrderedCode.from_pre_activations(pre, 3)
W = torch.randn(9, 4, requires_grad=True)
hsae_lens.nested_loss(code, W, torch.zeros(4), torch.randn(6, 4)).backward()
assert W.grad.any()
try:
    from hsae_lens import HierarchicalTopKSAE
except ImportError as error:
    print(error)
"""


def test_the_objective_works_where_saelens_is_missing() -> None:
    """A rented machine on which the kernels are measured has torch and little else."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_SAELENS], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("hsae_lens.HierarchicalTopKSAE needs SAELens: pip install")


def test_no_two_public_things_have_one_name() -> None:
    places = defaultdict(set)
    for file in FILES:
        if "kernels" in file.parts:
            continue  # each implementation has the same two functions
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for name in defined(node):
                if not name.startswith("_") and name not in ("logger", "IMPLEMENTATION"):
                    places[name].add(str(file.relative_to(PACKAGE)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert not twice, twice


def defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = {ast.Assign: "targets", ast.AnnAssign: "target"}.get(type(node))
    if targets is None:
        return []
    found = getattr(node, targets)
    each = found if isinstance(found, list) else [found]
    return [n.id for target in each for n in ast.walk(target) if isinstance(n, ast.Name)]
