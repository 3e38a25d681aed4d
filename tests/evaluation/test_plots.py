"""Pictures of an evaluation's tables, and what their columns are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import training_sae
from helpers.eval_runs import frontier

from hsae_lens._util.columns import LABELS, QUALITIES
from hsae_lens._util.html import table_html
from hsae_lens.evaluation.frontier.advice import advise
from hsae_lens.evaluation.plots import frontier_svg, plot_frontier
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
