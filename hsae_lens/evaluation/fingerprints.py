"""Short names for an SAE, so that what is kept of another one is never taken."""

from __future__ import annotations

from typing import Any

from sae_lens import SAE

from hsae_lens.models.fingerprint import digest
from hsae_lens.objective.budgets import Budget, ErrorTarget, MeanBudget
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

POSITIONS = ("hook_name", "seqpos_slice", "max_norm")
"""The metadata that says which activations an SAE is judged on."""


def sae_fingerprint(sae: SAE[Any]) -> str:
    """Of everything that decides an SAE's code at a given budget: weights, config, positions."""
    config = sae.cfg.to_dict()
    metadata = sae.cfg.metadata
    config |= {"device": None, "default_budget": None, "metadata": None}
    config.pop("calibration", None)  # decides nothing at fixed budgets; see work_name
    return digest(
        sorted(sae.state_dict().items()), config, {name: metadata[name] for name in POSITIONS}
    )


def work_name(sae: HierarchicalTopKSAE, budget: Budget) -> str:
    """Of what is kept for an SAE at a budget; by another calibration it is another."""
    if isinstance(budget, MeanBudget):
        return f"k-{budget}-above-{sae.calibration.threshold(budget):.9g}"
    if isinstance(budget, ErrorTarget):
        return f"k-{budget}-of-{sae.calibration.variance:.9g}"
    return f"k-{budget}"
