"""What README and the pages of docs/ say is so: their code runs as written, their names exist."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rooms import ROOMS

from hsae_lens import models
from hsae_lens._util.tables import read_csv
from hsae_lens.cli import _parser
from hsae_lens.cli.flags import describe
from hsae_lens.comparison import FAMILIES, CompareConfig
from hsae_lens.objective.kernels import IMPLEMENTATIONS
from hsae_lens.training.recipe_flags import known_flags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
NOT_RUN = re.compile(r"<!-- not run: \S.*? -->\n```python\n.*?```", re.DOTALL)
"""How a page marks a snippet that needs what a test has not: ``<!-- not run: needs a GPU -->``."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", NOT_RUN.sub("", text), re.DOTALL)


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """README's code run in an empty folder, its training made shorter; the folder and the names.

    A model is opened once for all pages.
    """
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "open_model", functools.cache(models.open_model))
        patch.chdir(folder)
        names: dict[str, Any] = {}
        for snippet in blocks(README, "python"):
            exec(snippet.replace("500_000", "8_192"), names)
        yield folder, names


def test_the_snippets_of_the_readme_load_and_train(readme: tuple[Path, dict[str, Any]]) -> None:
    folder, names = readme
    assert "500_000" in README
    assert names["sae"].budget == names["hsae_lens"].MeanBudget(32)  # as after the last line
    assert names["stock"].cfg.architecture() == "jumprelu"
    assert (folder / "runs" / "mine" / "sae_weights.safetensors").exists()


WITH_CODE = [n for n, text in PAGES.items() if n != "README.md" and blocks(text, "python")]


@pytest.mark.parametrize("page", WITH_CODE)
@pytest.mark.usefixtures("readme")
def test_the_snippets_of_a_page_run(page: str) -> None:
    names: dict[str, Any] = {}
    for snippet in blocks(PAGES[page], "python"):
        exec(snippet, names)
    if page == "docs/tasks/use.md":
        assert names["stack"].shape == (2, 10, 576)
    if page == "docs/tasks/judge.md":
        assert names["table"]["explained_variance"].between(0, 1).all()
    if page == "docs/tasks/circuits.md":
        assert set(names["curve"]["k"]) == {8, 32, 128}


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "bash")])
def test_the_commands_of_a_page_are_understood(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in "".join(blocks(PAGES[page], "bash")).replace("\\\n", " ").splitlines():
        command, *rest = shlex.split(line, comments=True) or [""]
        if command == "make":
            assert all(f"\n{target}:" in makefile for target in rest), line
        elif command == "hsae" and rest[0] == "train":
            known = {"recipe", "k", *known_flags("hierarchical_topk")}
            assert {word.lstrip("-") for word in rest if word.startswith("-")} <= known, line
        elif command == "hsae":
            _parser().parse_args(rest)


def test_the_readme_lists_every_command_once() -> None:
    listed = re.findall(r"^\| \[?`hsae (\w+)`", README, re.MULTILINE)
    usual = re.findall(r"^    (\w+)\b", _parser().format_help(), re.MULTILINE)
    assert sorted(listed) == sorted(usual)


def test_the_readmes_tree_names_the_rooms_in_the_order_of_imports() -> None:
    tree = re.search(r"```\nhsae_lens/\n(.*?)```", README, re.DOTALL)
    assert tree
    assert tuple(re.findall(r"^  (\w+)/", tree[1], re.MULTILINE)) == ROOMS
    for folder in re.findall(r"^(\w+)/ |    (\w+)/ ", tree[1], re.MULTILINE):
        assert (ROOT / "".join(folder)).is_dir(), folder


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_linked_files_exist(page: str) -> None:
    for name in re.findall(r"\]\((?!http)([^)#]+)", PAGES[page]):
        assert (ROOT / name).exists(), name


def test_files_named_in_code_exist() -> None:
    """`kernels/native.py` is some file whose path ends so."""
    places = ("hsae_lens", "tests", "benchmarks", "shipped_sae")
    there = [f"/{path.as_posix()}" for place in places for path in (ROOT / place).rglob("*.py")]
    for page, text in PAGES.items():
        for name in re.findall(r"`([a-z_/]+\.py)`", text):
            assert any(path.endswith(f"/{name}") for path in there), (page, name)


def test_the_page_on_speed_lists_the_kernels_in_their_order() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGES["docs/tasks/speed.md"], re.MULTILINE)
    assert [name for name, _ in listed] == list(IMPLEMENTATIONS)
    for name, where in listed:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            here = torch.device("cuda" if where.startswith("CUDA") else "cpu")
            said = where == "anything" or str(dtype).removeprefix("torch.") in where
            refusal = IMPLEMENTATIONS[name].refuses(here, dtype)
            assert (refusal is None) == said or "compiler" in str(refusal), (name, dtype, refusal)


def test_the_page_on_comparing_lists_every_family() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", PAGES["docs/tasks/compare.md"], re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`([\w-]+)`", row)] == list(FAMILIES)
    for name in FAMILIES:
        assert name in describe(CompareConfig, "families")


def test_readme_says_what_the_comparison_found() -> None:
    regret = read_csv(ROOT / "docs" / "comparison" / "regret_explained_variance.csv")
    regret = regret[regret["text"] == "same kind"]
    at = regret.set_index(["one", "rule", "k"])["regret"]
    uniform, inverse = at["hierarchical"], at["hierarchical-inverse"]
    said = README.split("## Is one as good as many?")[1].split("\n## ")[0]
    behind = [("fixed", 8), ("fixed", 64), ("fixed", 1), ("fixed", 2), ("fixed", 4)]
    on_average = [("mean", 16), ("mean", 4), ("mean", 64)]
    named = [uniform[row] for row in (*behind, *on_average)]
    named += [inverse["fixed", k] for k in (1, 2, 4, 8, 16, 32, 64)]
    assert re.findall(r"(?<=\s)\.\d{3}", said) == [f"{abs(r):.3f}".lstrip("0") for r in named]
    assert (uniform[[*behind, ("mean", 4), ("mean", 64)]] > 0.004).all(), "less"
    assert uniform["mean", 16] < 0, "more"
    assert (uniform["fixed"][[16, 32]].abs() < 0.002).all(), "as much"
    intervals = regret.set_index(["one", "rule", "k"])["interval"]["hierarchical"]
    assert (uniform["mean"][[8, 32]].abs() < intervals["mean"][[8, 32]]).all(), "as much"
    assert (inverse["fixed"][[1, 2, 4, 8]] < 0).all(), "ahead"
    assert (inverse["fixed"][[16, 32, 64]] > 0).all(), "behind"
    assert set(regret[regret["one"].str.startswith("hierarchical")]["seeds"]) == {3}


def test_make_targets_named_in_code_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page, text in PAGES.items():
        for target in re.findall(r"`make (\w+)`", text):
            assert f"\n{target}:" in makefile, (page, target)


def test_the_tables_of_speed_are_those_of_the_figures() -> None:
    from benchmarks import readme as tables

    for page, short in (("README.md", True), ("docs/benchmarks.md", False)):
        shown = PAGES[page].split(tables.BEGIN)[1].split(tables.END)[0].strip()
        assert shown == tables.table(ROOT / "benchmarks" / "results", short), page
