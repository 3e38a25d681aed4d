"""What `make docs` adds to the pages: files from elsewhere, tables from the code, and links."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
import runpy
import tomllib
from html import escape
from pathlib import Path
from typing import Any

import griffe
import numpy as np
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "changelog.md": ROOT / "CHANGELOG.md",
    "log.md": ROOT / "LOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
}
"""Pages whose files stay where they are, by their place in the site; and the notebooks."""

SHOWN = "blocks.15.hook_resid_post"  # the shipped SAE whose figures stand for the others


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: Any) -> Files:
    for place, path in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):  # mkdocs-jupyter takes no generated
        files.append(File(path.name, str(path.parent), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri in ELSEWHERE:
        for place, path in ELSEWHERE.items():
            markdown = markdown.replace(f"]({path.name})", f"]({place})")
        return markdown.replace("](docs/", "](")
    for make in (definitions, versions, commands, names, mean_budgets, comparison):
        mark = f"<!-- {make.__name__} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def definitions() -> str:
    """Of the columns, by table; a name with an underscore is a column's."""
    every = runpy.run_path(str(ROOT / "hsae_lens" / "_util" / "columns.py"))["DEFINITIONS"]
    parts = []
    for table, (version, text) in every.items():
        lines = re.sub(r"\b(\w+_\w+)\b", r"`\1`", text).rstrip(".").split("; ")
        items = "\n".join(f"- {line}" for line in lines)
        parts.append(f"### {table}\n\nVersion {version}.\n\n{items}")
    return "\n\n".join(parts)


def versions() -> str:
    """A row for each dependency: the lowest version promised, and the one known to work."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    known = {_plain(name): version for name, _, version in (pin.partition("==") for pin in pins)}
    rows = ["| package | promised | known to work |", "|---|---|---|",
            f"| Python | {project['requires-python']} | 3.11 |"]  # fmt: skip
    for dependency in project["dependencies"]:
        name, bounds = re.split(r"(?=[<>=])", dependency, maxsplit=1)
        rows.append(f"| {name} | {bounds} | {known[_plain(name)]} |")
    return "\n".join(rows)


def commands() -> str:
    """README's table."""
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (?:command|\[?`hsae).*$|^\|---\|---\|$", readme, re.MULTILINE)
    return "\n".join(rows).replace("](docs/", "](../")


def mean_budgets() -> str:
    """A shipped SAE's, beside fixed ones that use as many latents, from what its card says."""
    (file,) = (ROOT / "hsae_lens" / "releases" / "pretrained").rglob(f"{SHOWN}/cfg.json")
    rows = json.loads(file.read_text())["metadata"]["frontier"]
    head = ["asked", "used", "explained variance", "fixed", "recovered cross-entropy", "fixed"]
    parts = []
    for text in dict.fromkeys(row["text"] for row in rows):
        here = [row for row in rows if row["text"] == text]
        fixed = [row for row in here if row["rule"] == "fixed"]
        lines = [head, ["---"] * len(head)]
        for row in (row for row in here if row["rule"] == "mean" and 2 <= row["k"] <= 64):
            cells = [f"{row['k']:g}", f"{row['l0']:.1f}"]
            for of in ("explained_variance", "ce_score"):
                cells += [f"{row[of]:.3f}", f"{_at(row['l0'], fixed, of):.3f}"]
            lines.append(cells)
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"The shipped SAE of {SHOWN} on {text}:\n\n{table}")
    note = "“Fixed” is a fixed budget of as many latents, interpolated over the logarithm of k."
    return "\n\n".join([*parts, note])


WEIGHTINGS = {
    "hierarchical": "one SAE, uniform weights: explained, regret",
    "hierarchical-inverse": "one SAE, weights 1/j",
}


def comparison() -> str:
    """The full study's regret: rows as `hsae compare` wrote them, two weightings side by side."""
    with (ROOT / "docs" / "comparison" / "regret_explained_variance.csv").open() as file:
        rows = list(csv.DictReader(file))
    ones = {name: [r for r in rows if r["one"] == name] for name in WEIGHTINGS}
    head = ["text", "latents", "k", "best specialist", *WEIGHTINGS.values()]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row, *others in zip(*ones.values(), strict=True):
        spent = {"fixed": "of each token", "mean": "on average"}[row["rule"]]
        cells = [row["text"], spent, row["k"], f"{float(row['of_best']):.3f} ({row['best']})"]
        cells += [
            f"{float(r['of_one']):.3f}, {float(r['regret']):+.3f} ± {float(r['interval']):.3f}"
            for r in (row, *others)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _at(l0: float, fixed: list[dict[str, Any]], of: str) -> float:
    """A fixed budget's figure at some number of latents, between those that were measured."""
    place = [math.log(row["l0"]) for row in fixed]
    return float(np.interp(math.log(l0), place, [row[of] for row in fixed]))


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def names() -> str:
    """What the package itself exports, each linked to where it is described."""
    tree = ast.parse((ROOT / "hsae_lens" / "__init__.py").read_text())
    places = {
        alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    exported = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return (
        "\n".join(f"- [`{name}`][{places[name]}]" for name in exported if not name.startswith("_"))
        + "\n- `__version__`"
    )


class Docstrings(griffe.Extension):
    """Makes of our docstrings what mkdocstrings reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Names given as :func:`name` become links; "Returns:" starts with a type, as Google's."""
        if obj.docstring is None:
            return
        text = re.sub(
            r":\w+:`~?([^`]+)`", lambda match: _linked(match[1], obj), obj.docstring.value
        )
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            text = re.sub(r"Returns:\n(\s+)", rf"Returns:\n\g<1>{obj.returns}: ", text)
        obj.docstring.value = text

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """A field's value is its default, not the call that says so."""
        call = attr.value
        if isinstance(call, griffe.ExprCall) and call.function.canonical_name == "field":
            keywords = [a for a in call.arguments if isinstance(a, griffe.ExprKeyword)]
            given = {keyword.name: keyword.value for keyword in keywords}
            default = given.get("default", given.get("default_factory"))
            attr.value = default.body if isinstance(default, griffe.ExprLambda) else default


def _linked(name: str, near: griffe.Object) -> str:
    """Code, and a link if the name leads to something that a page describes."""
    path = name
    if not name.startswith("hsae_lens"):
        first, *rest = name.split(".")
        try:
            path = ".".join([near.resolve(first), *rest])
        except griffe.NameResolutionError:
            return f"`{name}`"
    shown = escape(name.removeprefix("hsae_lens.")).replace("_", "&#95;")
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
