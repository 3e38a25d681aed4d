"""What there is to see of a latent: where it fires, at which rank, what it does to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hsae_lens.evaluation.latents.describe import check_latents, logit_effects
from hsae_lens.evaluation.rank_ranges import rank_ranges
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.sae.codes import each_code
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

CONTEXT_BEFORE, CONTEXT_AFTER = 14, 6  # tokens shown around a latent's largest activation

BINS = 24


@dataclass(frozen=True)
class Context:
    """A stretch of text around one activation.

    tokens: their text.  values: the latent's activation at each (0: it does not fire, or the
    position does not count).  rank: its place in the code of the token it fires on most, from 1.
    """

    tokens: list[str]
    values: list[float]
    rank: int


@dataclass(frozen=True)
class Dashboard:
    """One latent.

    density: the share of tokens (of those that count) it fires on.  mean_rank: where it fires.
    edges: ``BINS + 1`` activation values; ranks: of :func:`rank_ranges`; histogram: tokens in each
    bin, a list for each of these.
    contexts: the strongest, one from a sequence.  promoted, suppressed: (token, logit), the most
    extreme first, by :func:`logit_effects`; empty where that has none.
    """

    latent: int
    density: float
    mean_rank: float
    edges: list[float]
    ranks: list[tuple[int, int]]
    histogram: list[list[int]]
    contexts: list[Context]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]


@torch.no_grad()
def latent_dashboards(
    sae: HierarchicalTopKSAE,
    model: HookedModel,
    tokens: torch.Tensor,
    latents: Sequence[int],
    n_contexts: int = 10,
    n_words: int = 10,
    batch_size: int = 16,
) -> list[Dashboard]:
    """A dashboard for each latent, from one pass over the tokens.

    Args:
        tokens: int64 ``[n_sequences, context_size]``.
        latents: numbers in 0..d_sae−1; one that is repeated is shown once.

    Raises:
        ValueError: if a number is outside, or none is given.
    """
    latents = list(dict.fromkeys(latents))
    if not latents:
        raise ValueError("Name the latents to show.")
    check_latents(sae, latents)
    ranges = rank_ranges(sae.cfg.k)
    column = torch.full((sae.cfg.d_sae,), len(latents), device=sae.device)
    column[latents] = torch.arange(len(latents), device=sae.device)
    values: list[torch.Tensor] = []
    ranks: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    for batch in each_code(sae, model, tokens, batch_size, "Latents"):
        code, keep = batch.code, batch.keep
        ranks_here = torch.arange(1, code.k + 1, device=code.values.device) * (code.values > 0)
        # Only the wanted latents are kept, [batch, context, len(latents)]; the others share one
        # more column, which is dropped.
        place = column[code.indices]
        for parts, of in ((values, code.values.float()), (ranks, ranks_here)):
            kept_part = of.new_zeros(*place.shape[:-1], len(latents) + 1).scatter(-1, place, of)
            parts.append(kept_part[..., :-1].cpu() * keep[..., None])
        kept.append(keep)
    value, rank, keep = torch.cat(values), torch.cat(ranks), torch.cat(kept)
    logits = logit_effects(sae, model, latents)
    return [
        _dashboard(n, model.tokenizer, tokens, value[..., i], rank[..., i], keep, ranges,
                   None if logits is None else logits[i], n_contexts, n_words)
        for i, n in enumerate(latents)
    ]  # fmt: skip


def _dashboard(
    latent: int,
    tokenizer: Any,
    tokens: torch.Tensor,
    value: torch.Tensor,
    rank: torch.Tensor,
    keep: torch.Tensor,
    ranges: list[tuple[int, int]],
    logits: torch.Tensor | None,
    n_contexts: int,
    n_words: int,
) -> Dashboard:
    fired = value > 0
    edges = torch.linspace(0, max(value.max().item(), 1e-6), BINS + 1)
    strongest = value.max(1)
    order = strongest.values.argsort(descending=True, stable=True)[:n_contexts]
    contexts = [
        _context_around(tokenizer, tokens[n], value[n], rank[n], int(strongest.indices[n]))
        for n in order.tolist()
        if strongest.values[n] > 0
    ]
    words: list[list[tuple[str, float]]] = [[], []]
    if logits is not None:
        for place, sign in enumerate((1, -1)):
            top = (sign * logits).topk(n_words)
            words[place] = [
                (tokenizer.decode([i]), sign * v)
                for v, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
    return Dashboard(
        latent,
        fired.sum().item() / max(int(keep.sum()), 1),
        rank[fired].double().mean().item(),
        edges.tolist(),
        ranges,
        [_histogram(value[fired & (rank >= low) & (rank <= high)], edges) for low, high in ranges],
        contexts,
        *words,
    )


def _histogram(values: torch.Tensor, edges: torch.Tensor) -> list[int]:
    return [int(n) for n in torch.histogram(values, edges).hist.tolist()]


def _context_around(
    tokenizer: Any, tokens: torch.Tensor, value: torch.Tensor, rank: torch.Tensor, at: int
) -> Context:
    shown = slice(max(0, at - CONTEXT_BEFORE), at + CONTEXT_AFTER + 1)
    texts = [tokenizer.decode([i]) for i in tokens[shown].tolist()]
    return Context(texts, value[shown].tolist(), int(rank[at]))
