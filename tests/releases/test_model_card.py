"""The card of an SAE."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from helpers import training_sae
from helpers.eval_runs import frontier

from hsae_lens import HierarchicalTopKSAE, calibrate
from hsae_lens._util.columns import DEFINITIONS
from hsae_lens.releases.model_card import store_frontier, write_card


@pytest.mark.parametrize("damage", [None, "frontier", {"frontier": 1}, {"frontier": {}}])
def test_a_card_says_by_which_definitions_its_frontier_was_measured(damage: Any) -> None:
    sae = training_sae()
    store_frontier(sae, frontier("mine"), "a text")
    version, text = DEFINITIONS["frontier"]
    card = write_card(sae, "release", "sae")
    assert f"What the figures are (version {version}): {text}" in card
    assert "a text" in card
    sae.cfg.metadata.definitions = damage  # an earlier one's, or somebody else's
    assert f"What the figures are: {text}" in write_card(sae, "release", "sae")


def test_a_card_says_what_mean_budgets_really_use() -> None:
    sae = training_sae()
    fixed = frontier("mine").drop(columns="sae")
    store_frontier(sae, fixed, "a text")
    assert "on average" not in write_card(sae, "release", "sae")
    calibrate(sae, torch.randn(600, 24), progress=False)
    sae = HierarchicalTopKSAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    assert "The thresholds are from 600 activations, and drift with the text:\n\nNot measured." in (
        write_card(sae, "release", "sae")
    )
    mean = fixed.assign(l0=[1.1, 1.9, 4.0])
    both = pd.concat([fixed.assign(rule="fixed"), mean.assign(rule="mean")]).assign(target=1)
    store_frontier(sae, both, "a text")
    card = write_card(sae, "release", "sae")
    first, second = card.split("## Spent on average")
    for part in (first, second):
        assert part.count("On a text:") == 1
        assert "rule" not in part.split("On a text:")[1].split("\n\n")[1], "the heading says it"
    assert "| 1 | 1.100 | +10.0% | 0.300" in second
    assert "| 2 | 1.900 | -5.0% |" in second
    assert "+10.0%" not in first
    half = both.assign(k=both["k"].where(both["rule"] == "fixed", 2.5))  # k is 1.0, 2.0, 4.0 then
    store_frontier(sae, half, "a text")
    first, second = write_card(sae, "release", "sae").split("## Spent on average")
    assert "| 4 | 4.000 | 0.600" in first
    assert "| 2.500 | 1.100 | -56.0%" in second
    assert "Spent on average" not in write_card(sae.at_k(4), "release", "sae"), "a stock one"
    store_frontier(sae, both, "a text")
    sae.cfg.metadata.frontier[3].pop("l0")  # what others may have put there
    assert "| 1 |" not in write_card(sae, "release", "sae").split("## Spent on average")[1]
