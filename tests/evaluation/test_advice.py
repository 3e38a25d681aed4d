"""Which budget to use, by a table and by the command."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from hsae_lens.cli import main
from hsae_lens.evaluation import (
    advise,
)


def test_advice_is_the_smallest_budget_that_keeps_enough() -> None:
    table = pd.DataFrame(
        {
            "k": [1, 4, 8, 2],
            "explained_variance": [0.4, 0.76, 0.8, 0.6],
            "ce_score": [-1, -2, -3, 0],
        }
    )
    advice = advise(table, 0.95)
    assert (advice.k, advice.value, advice.best) == (4, 0.76, 0.8)
    assert "k=4 keeps 95.0% of the explained variance at k=8" in str(advice)
    assert advise(table, 1.0).k == 8
    for keep, of, message in (
        (0, "explained_variance", "above 0"),
        (95, "explained_variance", "at most 1"),
        (0.9, "mse", "Cannot advise on 'mse'"),
        (0.9, "ce_score", "not worth a share"),
    ):
        with pytest.raises(ValueError, match=message):
            advise(table, keep, of)
    with pytest.raises(ValueError, match="cross_entropy=True"):
        advise(table.drop(columns="ce_score"), 0.9, "ce_score")


@pytest.mark.parametrize("ablated", [2.9, 3.0, 3.02])
def test_advice_says_where_ablation_does_not_hurt(ablated: float) -> None:
    table = pd.DataFrame(
        {
            "k": [1, 8],
            "explained_variance": [0.5, 0.9],
            "ce_score": [0.5, 0.9],
            "ce_clean": [3.0, 3.0],
            "ce_ablated": [ablated, ablated],
        }
    )
    advice = advise(table, 0.9, "ce_score")
    assert "Beware: with the hook set to zero the model predicts about as well" in str(advice)
    assert f"{ablated:.3f} nats per token, 3.000 as it is" in str(advice)
    assert "Beware" not in str(advise(table, 0.9)), "explained variance needs no ablation"
    hurts = table.assign(ce_ablated=9.0)
    assert "Beware" not in str(advise(hurts, 0.9, "ce_score"))


def test_advice_needs_budgets() -> None:
    with pytest.raises(ValueError, match="no column 'k'"):
        advise(pd.DataFrame({"explained_variance": [0.5]}))


def test_advice_from_a_table_and_from_an_sae(
    run_folder: Path, sae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frontier = pd.read_csv(run_folder / "frontier.csv")
    frontier["explained_variance"] += 1  # random weights explain nothing
    frontier.to_csv(run_folder.parent / "better.csv", index=False)
    assert main(["advise", str(run_folder.parent / "better.csv"), "--keep", "0.5"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2, "not on the control"
    assert re.search(r"mine: k=\d+ keeps .*% of the explained variance at k=24", said)
    assert main(["advise", str(sae_folder)]) == 1
    assert "has no saved frontier. Run `hsae eval" in capsys.readouterr().err
    shipped = "smollm2-135m-res-htopk/blocks.15.hook_resid_post"
    assert main(["advise", shipped, "--of", "ce_score"]) == 0
    assert "of the recovered cross-entropy at k=128" in capsys.readouterr().out
