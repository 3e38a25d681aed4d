"""Edges, which add up to the attribution."""

from __future__ import annotations

from typing import Any, get_args

import pandas as pd
import pytest
from helpers.circuits import CLOSE, CONTEXT, HOOKS, calibrated, dictionary, variant_on_model
from helpers.variants import VARIANTS

from hsae_lens import ErrorTarget, MeanBudget
from hsae_lens.circuits import attribute_budgets, latent_edges
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.objective.budgets import Budget


@pytest.mark.parametrize("replace", get_args(Replacement))
@pytest.mark.parametrize("k", [MeanBudget(3), ErrorTarget(0.5)], ids=str)
def test_edges_at_budgets_that_ask_tokens_add_up(
    model: Any, task: TokenizedTask, k: Budget, replace: Replacement
) -> None:
    saes = calibrated(model, *(dictionary(model, hook, task.clean) for hook in HOOKS))
    found = attribute_budgets(model, saes, task, [k], replace=replace, progress=False)
    upper = found.nodes(k)
    upper = upper[upper["site"] == HOOKS[0]].head(2)
    every = [{"site": HOOKS[1], "position": p, "latent": latent}
             for p in range(4, CONTEXT) for latent in range(-1, 48)]  # fmt: skip
    upper = upper[upper["position"] >= 4]  # nothing goes back from there
    assert len(upper)
    both = pd.concat([upper, pd.DataFrame(every)])
    edges = latent_edges(model, saes, both, k, task, replace=replace, progress=False)
    sums = edges.groupby(["site", "position", "latent"])["effect"].sum()
    for row in upper.itertuples():
        assert sums[(row.site, row.position, row.latent)] == pytest.approx(row.effect, rel=1e-5)


@pytest.mark.parametrize("replace", get_args(Replacement))
def test_edges_add_up_to_the_attribution(
    model: Any, saes: Any, task: TokenizedTask, replace: Replacement
) -> None:
    found = attribute_budgets(model, saes, task, [3], replace=replace, progress=False)
    upper = found.nodes(3)
    upper = upper[upper["site"] == HOOKS[0]].head(4)
    every = pd.DataFrame(
        [
            {"site": HOOKS[1], "position": p, "latent": latent}
            for p in range(1, CONTEXT)
            for latent in range(-1, 48)
        ]
    )
    both = pd.concat([upper, every])
    edges = latent_edges(model, saes, both, 3, task, replace=replace, progress=False)
    sums = edges.groupby(["site", "position", "latent"])["effect"].sum()
    for row in upper.itertuples():
        # Gemma's norms compute in float32, whatever the model is in.
        assert sums[(row.site, row.position, row.latent)] == pytest.approx(row.effect, rel=1e-5)
    # Whatever the order and the batches are, and however often a node's row is there.
    last = every[every["position"] == CONTEXT - 1]
    often = pd.concat([upper, last, upper, last.head(9)])
    again = latent_edges(
        model, saes[::-1], often, 3, task, replace=replace, batch_size=4, progress=False
    )
    same = edges[edges["to_position"] == CONTEXT - 1].reset_index(drop=True)
    assert len(same)
    pd.testing.assert_frame_equal(again, same)
    with pytest.raises(ValueError, match="No latent .* at 'blocks.5'"):
        latent_edges(model, saes, upper.assign(site="blocks.5"), 3, task)
    for wrong in ({"latent": 48}, {"position": CONTEXT}):
        with pytest.raises(ValueError, match="No latent 48|Position 9 is outside"):
            latent_edges(model, saes, every.assign(**wrong), 3, task)
    with pytest.raises(ValueError, match="two SAEs or more"):
        latent_edges(model, saes[:1], upper, 3, task)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "heads" not in name])
def test_edges_into_an_sae_of_any_kind_add_up(
    model: Any, task: TokenizedTask, variant: str
) -> None:
    """In the residual stream nothing goes past it; replaced by zero, only active nodes matter."""
    saes = [dictionary(model, HOOKS[0], task.clean), variant_on_model(variant)]
    nodes = attribute_budgets(model, saes, task, [3], replace="zero", progress=False).nodes(3)
    upper = nodes[nodes["site"] == HOOKS[0]].head(3)
    both = pd.concat([upper, nodes[nodes["site"] == HOOKS[1]]])
    edges = latent_edges(model, saes, both, 3, task, replace="zero", progress=False)
    sums = edges.groupby(["site", "position", "latent"])["effect"].sum()
    for row in upper.itertuples():
        near = max(1e-5, CLOSE[saes[1].dtype])  # Gemma's norms compute in float32
        assert sums[(row.site, row.position, row.latent)] == pytest.approx(row.effect, rel=near)
