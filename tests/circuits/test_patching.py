"""The exact effect of single nodes, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.circuits import HOOKS, calibrated, dictionary

from hsae_lens import ErrorTarget, MeanBudget
from hsae_lens.circuits import Ablator, attribute_budgets, patch_nodes
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooks import activations_at, run_changed
from hsae_lens.objective.budgets import Budget


@pytest.mark.parametrize("k", [3, MeanBudget(3), ErrorTarget(0.5)], ids=str)
def test_patching_one_node_by_hand(model: Any, task: TokenizedTask, k: Budget) -> None:
    name = HOOKS[1]
    (sae,) = calibrated(model, dictionary(model, name, task.clean))
    found = attribute_budgets(model, sae, task, [k], progress=False)
    nodes = found.nodes(k)
    nodes = nodes[nodes["latent"] >= 0].head(3)
    ablator = Ablator(model, sae, task)
    exact = patch_nodes(ablator, nodes, k, progress=False)["exact"]
    with torch.no_grad():
        x, other = (activations_at(model, t, [name])[name] for t in (task.clean, task.corrupt))
        with sae.using_budget(k):
            f, f_other = sae.encode(x), sae.encode(other)
        whole = task.metric(model(task.clean, prepend_bos=False)).mean()
        for row, value in zip(nodes.itertuples(), exact, strict=True):
            new, change = x.clone(), f_other - f
            rows = change[:, row.position, row.latent, None] * sae.W_dec[row.latent]
            new[:, row.position] += rows / sae.W_dec[row.latent].norm()
            left = task.metric(run_changed(model, task.clean, {name: lambda _, new=new: new}))
            assert value == pytest.approx((whole - left.mean()).item(), abs=1e-9)
