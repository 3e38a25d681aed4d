"""Every budget at once, and budgets that differ from token to token.

Both rest on one matrix: the squared error of each token at each budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from hsae_lens.budgets import powers_of_two
from hsae_lens.sae import HierarchicalTopKSAE, joined_heads

Errors = tuple[torch.Tensor, torch.Tensor]
"""What :func:`token_errors` gives."""


@torch.no_grad()
def token_errors(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    batch_size: int = 1024,
    progress: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The squared error of each token at every budget, and the activations of its latents.

    Args:
        activations: ``[n, d_in]``.
        batch_size: tokens at a time; small batches stay in the processor's cache.

    Returns:
        ``[n, K + 1]``, ‖x − x̂_j‖² summed over d_in for j = 0 (the bias alone) to K, and ``[n, K]``,
        the values of the ordered codes.

    Raises:
        ValueError: if there are no tokens or their width is not the SAE's.
    """
    if not len(activations):
        raise ValueError("There are no activations to judge.")
    errors, values = [], []
    for x in tqdm(activations.split(batch_size), "Every budget", disable=not progress):
        code = sae.encode_joined(x)
        with joined_heads(sae):
            stack = sae.each_budget(code, range(sae.cfg.k + 1))
            wide = x.to(sae.device).float()  # a low-precision difference would drown late latents
            each = [torch.linalg.vector_norm(x_hat.float() - wide, dim=-1) for x_hat in stack]
        errors.append(torch.stack(each, -1).square_().cpu())
        values.append(code.values.float().cpu())
    return torch.cat(errors), torch.cat(values)


def explained_variance_curve(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    progress: bool = True,
    errors: Errors | None = None,
) -> pd.DataFrame:
    """Explained variance at every budget 0..K, pooled as in :func:`evaluate_budgets`.

    Args:
        errors: what :func:`token_errors` gives for these, if it is at hand.

    Returns:
        Columns ``k``, ``explained_variance`` and ``adds``, what the k-th latent adds to it.
    """
    squared, _ = errors or token_errors(sae, activations, progress=progress)
    explained = 1 - squared.double().mean(0) / _variance(activations)
    table = pd.DataFrame({"k": range(len(explained)), "explained_variance": explained.tolist()})
    return table.assign(adds=table["explained_variance"].diff())


def adaptive_frontier(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    mean_budgets: Sequence[float] | None = None,
    error_targets: Sequence[float] = (),
    progress: bool = True,
    errors: Errors | None = None,
) -> pd.DataFrame:
    """Budgets that differ from token to token, beside a fixed budget of the same mean.

    Rule ``mean``: one threshold on the activations of all tokens spends a given mean budget; a
    token's latents above it are a prefix of its code. Rule ``error``: each token takes latents
    until its squared error is at most the target times the mean squared distance of activations
    from their mean (so a target is an unexplained share), or until K.

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
    variance = _variance(activations)
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


def _variance(x: torch.Tensor) -> float:
    wide = x.double()
    return float((wide - wide.mean(0)).square().sum(-1).mean())
