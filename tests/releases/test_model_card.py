"""The card of an SAE."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import training_sae
from helpers.eval_runs import frontier

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
