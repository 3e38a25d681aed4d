"""Ablation, with everything kept and everything replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from helpers.circuits import (
    BUDGETS,
    BY_TOKEN,
    CLOSE,
    HOOKS,
    calibrated,
    dictionary,
    scale_and_bias,
    variant_on_model,
)
from helpers.variants import VARIANTS

from hsae_lens import MeanBudget
from hsae_lens.circuits import Ablator, Prompts, complement
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooks import activations_at, run_changed


@pytest.mark.parametrize("replace", get_args(Replacement))
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_kept_and_everything_replaced(
    model: Any, task: TokenizedTask, variant: str, replace: Replacement
) -> None:
    saes = calibrated(model, dictionary(model, HOOKS[0], task.clean), variant_on_model(variant))
    ablator = Ablator(model, saes, task, replace, batch_size=4)
    whole, near = complement(ablator.empty_circuit()), CLOSE[saes[1].dtype]
    for k in (*BUDGETS, *BY_TOKEN):
        assert ablator(k, whole) == pytest.approx(ablator(k), abs=near)
    names = [site.hook_name for site in ablator.sites]
    clean = activations_at(model, task.clean, names)
    corrupt = activations_at(model, task.corrupt, names)

    def replaced(name: str, sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(x: torch.Tensor) -> torch.Tensor:
            _, bias = scale_and_bias(sae, x.flatten(2).to(sae.dtype))
            new = {
                "resample": corrupt[name],
                "mean": torch.cat([clean[name], corrupt[name]]).mean(0).expand(x.shape),
                "zero": bias.to(x).reshape(x.shape),
            }[replace]
            return torch.cat([x[:, :1], new[:, 1:]], 1)  # BOS stays

        return change

    changes = {name: replaced(name, sae) for name, sae in zip(names, saes, strict=True)}
    with torch.no_grad():
        by_hand = task.metric(run_changed(model, task.clean, changes)).mean().item()
    for k in (*BUDGETS, *BY_TOKEN):
        assert ablator(k, ablator.empty_circuit()) == pytest.approx(by_hand, abs=near)


def test_positions_are_settled_by_the_clean_prompts(model: Any, saes: Any, task: Any) -> None:
    """Replacing one site must not change which positions of the next are replaced."""
    lower, upper = dictionary(model, HOOKS[0], task.clean), dictionary(model, HOOKS[1], task.clean)
    upper.cfg.metadata.max_norm = (
        activations_at(model, task.clean, HOOKS)[HOOKS[1]].norm(dim=-1).max().item() + 1e-6
    )
    with torch.no_grad():
        lower.b_dec.mul_(50)  # replaced by it, the next site's norms are all outliers
    ablator = Ablator(model, [lower, upper], task, replace="zero")
    nothing = ablator.empty_circuit()
    first = {**nothing, HOOKS[1]: complement(nothing)[HOOKS[1]]}
    assert abs(ablator(3, first) - ablator(3, nothing)) > 1e-6


def test_what_cannot_be_ablated_is_said(model: Any, saes: Any, task: TokenizedTask) -> None:
    with pytest.raises(ValueError, match="needs corrupt prompts"):
        Ablator(model, saes, Prompts(task.clean, task.metric))
    ablator = Ablator(model, saes, task)
    with pytest.raises(ValueError, match="budget 9 is outside 1..8"):
        ablator(9)
    with pytest.raises(ValueError, match=f"{HOOKS[0]}: This SAE has no thresholds"):
        ablator(MeanBudget(3))
    with pytest.raises(ValueError, match="No latent 48"):
        ablator.circuit(pd.DataFrame([{"site": HOOKS[0], "latent": 48}]))
    with pytest.raises(ValueError, match="Position 9 is outside"):
        ablator.circuit(pd.DataFrame([{"site": HOOKS[0], "latent": 4, "position": 9}]))
