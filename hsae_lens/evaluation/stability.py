"""Does the order mean something? Agreement of first latents under noise and across seeds.

Every figure stands beside a shuffled control: what latents of unrelated tokens agree on.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

from hsae_lens.evaluation.checks import budgets_up_to
from hsae_lens.evaluation.frontier.errors import TokenErrors, token_errors
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE


@torch.no_grad()
def noise_stability(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    noise: float = 0.1,
    budgets: Sequence[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement of a token's first j latents with those of the same token under noise.

    Args:
        activations: ``[n, d_in]``.
        noise: length of the Gaussian noise as a share of each activation's distance from the mean.
        budgets: the j; None for 1, 2, 4, … K.

    Returns:
        A row per budget: ``k``, ``agreement`` (mean over tokens of the share of its first k active
        latents that are among the other's) and ``shuffled`` (the same between unrelated tokens).

    Raises:
        ValueError: for negative noise, fewer than two tokens, or bad budgets.
    """
    if noise < 0 or len(activations) < 2:
        raise ValueError(f"Needs noise ≥ 0 and 2 or more tokens, got {noise}, {len(activations)}.")
    x = activations.float()
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape, generator=generator).to(x)
    direction *= (x - x.mean(0)).norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
    noisy = x + noise * direction
    return _agreement(_ordered_latents(sae, x), _ordered_latents(sae, noisy), budgets)


@torch.no_grad()
def paraphrase_stability(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    others: torch.Tensor,
    budgets: Sequence[int] | None = None,
) -> pd.DataFrame:
    """As :func:`noise_stability`, between tokens and their counterparts in other wordings.

    Args:
        activations, others: ``[n, d_in]``, row by row the same token in two contexts, for example
            the last tokens of sentences and of their paraphrases.
    """
    if activations.shape != others.shape:
        raise ValueError(f"Need two equal shapes, got {activations.shape} and {others.shape}.")
    return _agreement(_ordered_latents(sae, activations), _ordered_latents(sae, others), budgets)


@torch.no_grad()
def seed_stability(
    sae: HierarchicalTopKSAE,
    other: HierarchicalTopKSAE,
    activations: torch.Tensor,
    budgets: Sequence[int] | None = None,
) -> tuple[float, float, pd.DataFrame]:
    """Agreement of two SAEs trained from different seeds, latents matched one to one.

    Latents are matched to maximise the mean absolute cosine of their decoder rows (Hungarian
    algorithm, some seconds for 5,000 latents and cubic in them). That mean is PW-MCC (arXiv
    2505.20254), as SAELens has it: 1 if both runs found the same dictionary. Codes of different K
    are compared as far as both go.

    Returns:
        PW-MCC, the same between ``sae`` and random directions, and :func:`noise_stability`'s table
        between the two SAEs' codes of the same tokens.

    Raises:
        ValueError: if their widths differ, or a budget is above the smaller K.
    """
    if sae.W_dec.shape != other.W_dec.shape:
        raise ValueError(
            f"The SAEs have decoders {tuple(sae.W_dec.shape)} and {tuple(other.W_dec.shape)}; only "
            "equal ones can be matched one to one."
        )
    mine, others = sae.W_dec.float().cpu(), other.W_dec.float().cpu()
    random = torch.randn(mine.shape, generator=torch.Generator().manual_seed(0))
    to_mine, mcc = _match_one_to_one(others, mine)
    _, chance = _match_one_to_one(random, mine)
    theirs = _ordered_latents(other, activations)
    matched = torch.where(theirs >= 0, to_mine[theirs], -1)
    return mcc, chance, _agreement(_ordered_latents(sae, activations), matched, budgets)


def _match_one_to_one(rows: torch.Tensor, to: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Each row's partner among ``to``'s rows, one to one, and the pairs' mean absolute cosine."""
    normalize = torch.nn.functional.normalize
    cosines = (normalize(rows, dim=-1) @ normalize(to, dim=-1).T).abs()
    ordered, partners = linear_sum_assignment(cosines.numpy(), maximize=True)  # rows 0, 1, 2, …
    return torch.as_tensor(partners), cosines[ordered, partners].mean().item()


def contribution_stability(
    sae: HierarchicalTopKSAE,
    activations: torch.Tensor,
    documents: torch.Tensor,
    errors: TokenErrors | None = None,
) -> pd.DataFrame:
    """Whether the same latents matter in different documents, and whether worth falls with rank.

    A latent's worth in a half of the documents is the mean fall of the squared error when it
    enters, over the tokens it enters for.

    Args:
        activations: ``[n, d_in]``.
        documents: int64 ``[n]``, which document each token is of; every second one is one half.
        errors: what :func:`token_errors` gives for these, if it is at hand.

    Returns:
        One row: ``rank_correlation`` (Spearman, of latents' worth between the halves, over latents
        active in both), ``shuffled`` (with one half's latents permuted), ``latents`` (how many),
        ``falls`` (share of ranks whose mean worth is at most the rank's before).

    Raises:
        ValueError: if fewer than ten latents are active in both halves.
    """
    squared, _ = errors or token_errors(sae, activations, progress=False)
    worth = (squared[:, :-1] - squared[:, 1:]).double()
    present, of_each = documents.unique(return_inverse=True)
    indices = _ordered_latents(sae, activations)
    halves = []
    for half in (of_each % 2 == 0, of_each % 2 == 1):
        counts = torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
        sums = counts.clone()
        entered = indices[half] >= 0
        flat = indices[half][entered]
        sums.index_add_(0, flat, worth[half][entered])
        counts.index_add_(0, flat, torch.ones(len(flat), dtype=torch.float64))
        halves.append((sums / counts, counts > 0))
    both = halves[0][1] & halves[1][1]
    if int(both.sum()) < 10:
        raise ValueError(
            f"Only {int(both.sum())} latents are active in both halves of the text's "
            f"{len(present)} documents; give more of them."
        )
    first, second = halves[0][0][both], halves[1][0][both]
    shuffled = second[torch.randperm(len(second), generator=torch.Generator().manual_seed(0))]
    by_rank = worth.mean(0)
    return pd.DataFrame(
        {
            "rank_correlation": [spearmanr(first, second).statistic],
            "shuffled": [spearmanr(first, shuffled).statistic],
            "latents": [len(first)],
            "falls": [(by_rank[1:] <= by_rank[:-1]).double().mean().item()],
        }
    )


def _ordered_latents(sae: HierarchicalTopKSAE, activations: torch.Tensor) -> torch.Tensor:
    """The latents of each token in order ``[n, K]``, -1 where fewer than K are active."""
    codes = [sae.encode_joined(x) for x in activations.split(1024)]
    return torch.cat([torch.where(c.values > 0, c.indices, -1).cpu() for c in codes])


def _agreement(a: torch.Tensor, b: torch.Tensor, budgets: Sequence[int] | None) -> pd.DataFrame:
    """Of two codes ``[n, K]``, up to the shorter one's K."""
    largest, rows = min(a.shape[1], b.shape[1]), []
    for k in budgets_up_to(largest, budgets):
        mine, other = a[:, :k], b[:, :k]
        rows.append(
            {
                "k": k,
                "agreement": _mean_share_in_common(mine, other),
                "shuffled": _mean_share_in_common(mine, other.roll(len(other) // 2, 0)),
            }
        )
    return pd.DataFrame(rows)


def _mean_share_in_common(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over rows of the share of a row's latents that are among the other's."""
    shares = []
    for x, y in zip(a.split(256), b.split(256), strict=True):
        found = (x[:, :, None] == y[:, None, :]).any(-1) & (x >= 0)
        shares.append(found.sum(-1) / (x >= 0).sum(-1).clamp(min=1))
    return torch.cat(shares).double().mean().item()
