"""Budgets that differ from token to token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from hsae_lens._util.columns import QUALITIES
from hsae_lens._util.tables import rows_by_rule, rules_of
from hsae_lens.evaluation.frontier.errors import TokenErrors, token_errors, total_variance
from hsae_lens.objective.budgets import powers_of_two
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE


def adaptive_frontier(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    mean_budgets: Sequence[float] | None = None,
    error_targets: Sequence[float] = (),
    progress: bool = True,
    errors: TokenErrors | None = None,
) -> pd.DataFrame:
    """Budgets that differ from token to token, beside a fixed budget of the same mean.

    Rule ``mean``: one threshold on the activations of all tokens spends a given mean budget; a
    token's latents above it are a prefix of its code. Rule ``error``: each token takes latents
    until its squared error is at most the target times the mean squared distance of activations
    from their mean (so a target is an unexplained share), or until K.

    It needs no calibration, because threshold and variance are taken from these very activations,
    and it looks at a token's first K latents only. A :class:`MeanBudget` or :class:`ErrorTarget`
    of the SAE has them from elsewhere (:func:`hsae_lens.calibrate`): its l0 on a text is only near
    the number asked for, and a mean budget may use more than K latents of a token.
    :func:`evaluate_budgets` judges those; this is what they could do at best within K.

    Args:
        activations: ``[n, d_in]``.
        mean_budgets: above 0, up to K; None for 1, 2, 4, … K.
        error_targets: above 0.
        errors: what :func:`token_errors` gives for these, if it is at hand.

    Returns:
        A row per rule and target: ``rule``, ``target``, ``l0`` (mean active latents), ``l0_std``
        (over tokens), ``explained_variance``, and ``fixed``: explained variance of one budget for
        all tokens with the same mean of active latents, interpolated between whole budgets.

    Raises:
        ValueError: for a target outside these bounds.
    """
    mean_budgets = powers_of_two(sae.cfg.k) if mean_budgets is None else mean_budgets
    if bad := [mean for mean in mean_budgets if not 0 < mean <= sae.cfg.k]:
        raise ValueError(f"A mean budget must be above 0 and at most K={sae.cfg.k}, got {bad[0]}.")
    if bad := [target for target in error_targets if target <= 0]:
        raise ValueError(f"An error target must be above 0, got {bad[0]}.")
    squared, values = errors or token_errors(sae, activations, progress=progress)
    variance = total_variance(activations)
    active = (values > 0).sum(-1)  # a budget beyond these changes nothing, and is not counted
    fixed = 1 - squared.double().mean(0) / variance
    fixed_l0 = [active.clamp(max=k).double().mean().item() for k in range(sae.cfg.k + 1)]
    rules = [("mean", mean, spend_mean(values, mean)) for mean in mean_budgets]
    rules += [("error", share, reach_error(squared, share * variance)) for share in error_targets]
    rows = []
    for rule, target, budgets in rules:
        budgets = budgets.minimum(active)
        mean = budgets.double().mean().item()
        error = squared.gather(1, budgets[:, None]).double().mean()
        rows.append(
            {
                "rule": rule,
                "target": target,
                "l0": mean,
                "l0_std": budgets.double().std().item(),
                "explained_variance": 1 - error.item() / variance,
                "fixed": float(np.interp(mean, fixed_l0, fixed)),
            }
        )
    return pd.DataFrame(rows)


def beside_fixed(frontier: pd.DataFrame) -> pd.DataFrame:
    """The rows of an SAE's frontier whose budgets are not fixed, and a fixed one with their l0.

    Columns ``fixed explained_variance`` and ``fixed ce_score`` are interpolated between the fixed
    budgets of the table, over the logarithm of l0; NaN outside them, and where there is no l0.
    """
    fixed, rest = rows_by_rule(frontier), frontier[rules_of(frontier) != "fixed"]
    for of in [of for of in QUALITIES if of in frontier]:
        rest = rest.assign(**{f"fixed {of}": _at_l0(fixed, rest, of)})
    return rest


def _at_l0(fixed: pd.DataFrame, rows: pd.DataFrame, of: str) -> np.ndarray | float:
    if "l0" not in rows:
        return np.nan
    known = fixed[fixed["l0"] > 0].sort_values("l0")
    if known.empty:
        return np.nan
    asked = np.log2(rows["l0"].where(rows["l0"] > 0))
    return np.interp(asked, np.log2(known["l0"]), known[of], left=np.nan, right=np.nan)


def spend_mean(values: torch.Tensor, mean: float) -> torch.Tensor:
    """Budgets ``[n]`` that keep the largest ``mean · n`` of the values ``[n, K]`` of n tokens."""
    n_kept = min(max(1, round(mean * len(values))), values.numel())
    threshold = values.flatten().kthvalue(values.numel() - n_kept + 1).values
    return ((values >= threshold) & (values > 0)).sum(-1)


def reach_error(errors: torch.Tensor, target: float) -> torch.Tensor:
    """The smallest budgets ``[n]`` whose errors ``[n, K + 1]`` are at most ``target``, or K."""
    enough = errors <= target
    enough[:, -1] = True
    return enough.to(torch.uint8).argmax(-1)
