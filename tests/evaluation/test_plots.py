"""Pictures of an evaluation's tables, and what their columns are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import training_sae
from helpers.eval_runs import frontier, mixed_frontier
from matplotlib.axes import Axes

from hsae_lens._util.columns import LABELS, QUALITIES
from hsae_lens._util.html import table_html
from hsae_lens.evaluation.frontier.advice import advise
from hsae_lens.evaluation.plots import frontier_svg, plot_frontier, probing_svg, tasks_svg
from hsae_lens.releases.model_card import store_frontier, write_card


def test_the_picture_of_a_frontier_needs_only_its_tables(tmp_path: Path) -> None:
    file = plot_frontier(frontier("$mine_", ce_score_se=0.01), tmp_path / "frontier.png", "A title")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_quality_has_one_label_in_pictures_tables_advice_and_cards(quality: str) -> None:
    table, label = frontier("mine"), LABELS[quality]
    sae = training_sae()
    store_frontier(sae, table, "a text")
    for said in (table_html(table), str(advise(table, 0.9, quality)), write_card(sae, "r", "s")):
        assert label in said
    assert label.capitalize() in frontier_svg(table, quality)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[float], list[float], Any]]:
    """What curves matplotlib is asked for, by label: x, y and the line."""
    curves, plot = {}, Axes.plot

    def remember(axes: Axes, x: Any, y: Any, **style: Any) -> Any:
        curves[style["label"]] = (list(x), list(y), style["linestyle"])
        return plot(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", remember)
    return curves


def test_budgets_on_average_stand_at_the_latents_they_used(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    table = mixed_frontier("mine", l0=[0.9, 1.9, 3.9, 2.25, 3.5])
    svg = frontier_svg(table, "explained_variance")
    assert drawn == {
        "mine": ([1, 2, 4], [0.3, 0.5, 0.6], "-"),
        "mine, on average": ([2.25], [0.55], "--"),
        "mine, by error": ([3.5], [0.58], ":"),
    }
    assert "Latents used per token: k, or on average" in svg
    assert "Budget k: latents used per token" in frontier_svg(frontier("mine"), "ce_score")
    plot_frontier(table, tmp_path / "frontier.png", "A title")
    drawn.clear()
    frontier_svg(table.drop(columns="l0"), "ce_score")
    assert drawn["mine, on average"][:2] == ([2], [0.87]), "by what was asked for"
    assert set(drawn) == {"mine", "mine, on average"}, "an error target has no place there"


def test_tasks_and_probes_at_a_mean_budget_are_curves_of_their_own(drawn: dict[str, Any]) -> None:
    rules = {"k": [1, 2, 2, 4], "rule": ["fixed", "fixed", "mean", "error"],
             "target": [1, 2, 2, 0.1]}  # fmt: skip
    tasks_svg(pd.DataFrame(rules | {"task": "a_task", "logit_retention": [0.1, 0.2, 0.3, 0.4]}))
    assert drawn.pop("a task")[:2] == ([1, 2], [0.1, 0.2])
    assert drawn.pop("a task, on average")[:2] == ([2], [0.3])
    assert not drawn, "an error target has no l0 here"
    rows = pd.DataFrame(rules | {"sae": "mine", "probe_size": 1, "test_auc": [0.6, 0.7, 0.8, 0.9]})
    other = rows.assign(test_auc=rows["test_auc"] - 0.2)  # of another data set
    probing_svg(pd.concat([rows, other]), 1)
    assert drawn["mine"][1] == pytest.approx([0.5, 0.6])
    assert drawn["mine, on average"] == ([2], pytest.approx([0.7]), "--")
    assert set(drawn) == {"mine", "mine, on average"}
