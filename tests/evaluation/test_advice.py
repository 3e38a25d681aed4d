"""Which budget to use, by a table and by the command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hsae_lens import HierarchicalTopKSAE
from hsae_lens._util.tables import read_csv, write_csv
from hsae_lens.cli import main
from hsae_lens.evaluation import (
    advise,
)
from hsae_lens.releases.model_card import store_frontier


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


def test_advice_for_each_rule_in_a_table() -> None:
    table = pd.DataFrame(
        {
            "k": [2, 8, 12, 2, 24, 8, 8],
            "rule": ["fixed", "fixed", "mean", "mean", "mean", "error", "error"],
            "target": [2, 8, 12, 2, 24, 0.1, 0.2],
            "l0": [2, 8, 12.3, 2.1, 23.9, 100.2, 61.4],
            "explained_variance": [0.6, 0.7, 0.78, 0.2, 0.8, 0.9, 0.88],
        }
    )
    fixed = advise(table.loc[:1, ["k", "explained_variance"]])
    assert str(advise(table)) == str(fixed), "fixed budgets are judged among themselves"
    assert (advise(table).k, advise(table).rule, advise(table).best) == (8, "fixed", 0.7)
    mean = advise(table, rule="mean")
    assert (mean.k, mean.rule, mean.target, mean.l0, mean.largest) == (12, "mean", 12, 12.3, 24)
    assert str(mean) == (
        "a mean budget of 12 keeps 97.5% of the explained variance at one of 24: 0.780 of 0.800."
    )
    error = advise(table, rule="error")
    assert (error.rule, error.target, error.l0, error.largest) == ("error", 0.2, 61.4, 0.1)
    assert str(error).startswith("an error target of 0.2 (L0 61) keeps 97.8% of the explained var")
    assert str(error).endswith(" at one of 0.1: 0.880 of 0.900.")
    without = advise(table.drop(columns="l0"), rule="error")
    assert str(without).startswith("an error target of 0.2 keeps 97.8%")
    with pytest.raises(ValueError, match="no mean budgets; it has fixed, error"):
        advise(table[table["rule"] != "mean"], rule="mean")
    with pytest.raises(ValueError, match="Unknown rule 'men'; known: fixed, mean, error"):
        advise(table, rule="men")
    with pytest.raises(ValueError, match="at a mean budget of 24 is -0.200: not worth a share"):
        advise(table.assign(explained_variance=table["explained_variance"] - 1), rule="mean")


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


def test_the_command_advises_by_every_rule_of_a_table_and_of_an_sae(
    mean_run: tuple[Path, Any],
    calibrated_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = read_csv(mean_run[0] / "frontier.csv")
    table["explained_variance"] += 1  # random weights explain nothing
    write_csv(table, tmp_path / "better.csv")
    assert main(["advise", str(tmp_path / "better.csv"), "--keep", "0.5"]) == 0
    said = capsys.readouterr().out.splitlines()
    rules = [re.search(r"(k=|a mean budget|an error target)", line)[0] for line in said]
    assert rules == ["k=", "a mean budget", "an error target", "k="], "the stock SAE's is fixed"
    sae = HierarchicalTopKSAE.load_from_disk(calibrated_folder)
    mine = table[table["sae"] == str(calibrated_folder)]
    store_frontier(sae, mine[mine["k"] != 8.5], "a text")
    sae.save_model(tmp_path / "sae")
    assert main(["advise", str(tmp_path / "sae"), "--keep", "0.5"]) == 0
    stored = capsys.readouterr().out.splitlines()
    assert [line.startswith("a text: ") for line in stored] == [True] * 3
    assert " (L0 " in stored[2]
