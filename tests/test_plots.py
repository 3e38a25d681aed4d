"""Pictures of tables whose names are whatever a user has: they are drawn, and as they are."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pandas as pd
import pytest

from hsae_lens.plots import (
    frontier_svg,
    histogram_svg,
    plain,
    plot_frontier,
    probing_svg,
    tasks_svg,
)

# What is drawn where it cannot be drawn as it is.
NAMES = {
    "a$b": "a$b",
    "$x_": "$x_",
    "${HOME}$": "${HOME}$",
    r"\$5 and $6": r"\$5 and $6",
    "two\nlines": "two↵lines",
    "nul\0": r"nul\x00",
    "_hidden": "_hidden",
    '<b> & "it\'s"': '&lt;b&gt; &amp; "it\'s"',
    "漢字 🎉": "漢字 🎉",
    "42": "42",
}


def frontier(name: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"sae": name, "k": [1, 2, 4], "explained_variance": [0.1, 0.2, 0.3], "ce_score": 0.5}
    )


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_as_it_is_and_without_a_warning(name: str, tmp_path: Path) -> None:
    tasks = pd.DataFrame({"task": name, "k": [1, 2], "logit_retention": 0.5})
    probing = frontier(name).assign(probe_size=1, test_auc=0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pages = [
            frontier_svg(frontier(name), "ce_score"),
            probing_svg(probing, 1),
            histogram_svg([0, 1, 2], [[3, 4]], [name]),
        ]
        if "_" not in name:  # a task's are shown as spaces
            pages.append(tasks_svg(tasks))
        plot_frontier(frontier(name), tmp_path / "frontier.png", title=name)
    for page in pages:
        texts = [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", page)]
        assert NAMES[name] in texts


def test_a_very_long_name_leaves_room_for_the_curves(tmp_path: Path) -> None:
    name = "/home/me/" + 40 * "long/" + "layer-12"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the axes have no room left
        page = frontier_svg(frontier(name), "ce_score")
        plot_frontier(frontier(name), tmp_path / "frontier.png", title=name)
    assert "…" in page
    assert "layer-12</text>" in page, "the end of a path tells SAEs apart"
    assert len(plain(name)) == 60
    assert plain("\udce9") == r"\udce9", "a byte of a path that is no text"


def test_figures_of_one_page_share_no_id() -> None:
    pages = [frontier_svg(frontier("a"), of) for of in ("explained_variance", "ce_score")]
    ids = [set(re.findall(r'id="([^"]*)"', page)) for page in pages]
    assert not ids[0] & ids[1]
    for page, own in zip(pages, ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', page)) <= own
    assert pages[0] == frontier_svg(frontier("a"), "explained_variance"), "the same every time"
