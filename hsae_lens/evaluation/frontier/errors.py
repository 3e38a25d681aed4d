"""Every budget at once: the squared error of each token at each budget."""

from __future__ import annotations

import pandas as pd
import torch
from tqdm.auto import tqdm

from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.normalization import joined_heads

TokenErrors = tuple[torch.Tensor, torch.Tensor]
"""What :func:`token_errors` gives."""


@torch.no_grad()
def token_errors(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    batch_size: int = 1024,
    progress: bool = True,
) -> TokenErrors:
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
        errors.append(errors_of_code(sae, x, code))
        values.append(code.values.float().cpu())
    return torch.cat(errors), torch.cat(values)


@torch.no_grad()
def errors_of_code(sae: HierarchicalTopKSAE, x: torch.Tensor, code: OrderedCode) -> torch.Tensor:
    """‖x − x̂_j‖² ``[n, code.k + 1]`` for j = 0..code.k, from the SAE's latest code of ``x``."""
    with joined_heads(sae):
        stack = sae.each_budget(code, range(code.k + 1))
        wide = x.to(sae.device).float()  # a low-precision difference would drown late latents
        each = [torch.linalg.vector_norm(x_hat.float() - wide, dim=-1) for x_hat in stack]
    return torch.stack(each, -1).square_().cpu()


def explained_variance_curve(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    progress: bool = True,
    errors: TokenErrors | None = None,
) -> pd.DataFrame:
    """Explained variance at every budget 0..K, pooled as in :func:`evaluate_budgets`.

    Args:
        errors: what :func:`token_errors` gives for these, if it is at hand.

    Returns:
        Columns ``k``, ``explained_variance`` and ``adds``, what the k-th latent adds to it.
    """
    squared, _ = errors or token_errors(sae, activations, progress=progress)
    explained = 1 - squared.double().mean(0) / total_variance(activations)
    table = pd.DataFrame({"k": range(len(explained)), "explained_variance": explained.tolist()})
    return table.assign(adds=table["explained_variance"].diff())


def total_variance(x: torch.Tensor) -> float:
    wide = x.double()
    return float((wide - wide.mean(0)).square().sum(-1).mean())
