"""What can be said of single latents without a judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.sae.codes import each_code
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

WRITES_TO_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out",
                    "hook_mlp_out")  # fmt: skip


def check_latents(sae: SAE[Any], latents: Iterable[int]) -> None:
    """Raises ValueError if a number is not one of the SAE's latents: counted from the end it would
    be another one."""
    if outside := [i for i in latents if not 0 <= i < sae.cfg.d_sae]:
        raise ValueError(
            f"Latents are numbers in 0..{sae.cfg.d_sae - 1}, got {', '.join(map(str, outside))}."
        )


@torch.no_grad()
def describe_latents(
    sae: HierarchicalTopKSAE,
    model: HookedModel,
    tokens: torch.Tensor,
    latents: Sequence[int] | None = None,
    n_words: int = 5,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Descriptive columns for latents: where they stand, which tokens they fire on and promote.

    Args:
        tokens: int64 ``[n_sequences, context_size]``.
        latents: which; None for all that fire in these tokens.
        n_words: tokens to list.

    Returns:
        A row per latent: ``latent``; ``density`` (share of tokens it fires on); ``rank`` (mean
        place in the code, 1 is first) and ``activation`` (mean), where it fires; ``fires_on`` (the
        tokens it fires on most often), ``enrichment`` (how many times more often than chance the
        first of them is there) and ``token_share`` (the share of its activations on that token: 1
        is a token detector); ``promotes`` (the tokens whose logits its decoder row raises most, see
        :func:`logit_effects`; empty at hooks that do not write to the residual stream).

    Raises:
        ValueError: if there is no such latent.
    """
    check_latents(sae, latents or ())
    parts = []
    for batch in each_code(sae, model, tokens, batch_size, "Latents"):
        code, keep = batch.code, batch.keep
        parts.append((code.values.cpu()[keep], code.indices.cpu()[keep], batch.tokens[keep]))
    values, indices, words = (torch.cat(column) for column in zip(*parts, strict=True))
    n, k = values.shape
    fired = values > 0
    latent, value = indices[fired], values[fired].double()
    rank = torch.arange(1, k + 1).expand(n, k)[fired].double()
    word = words[:, None].expand(n, k)[fired]
    counts = torch.bincount(latent, minlength=sae.cfg.d_sae).double()

    def mean(of: torch.Tensor) -> torch.Tensor:
        return torch.bincount(latent, of, minlength=sae.cfg.d_sae) / counts

    ranks, activations = mean(rank), mean(value)
    base = torch.bincount(words).double() / n
    order = latent.argsort(stable=True)
    ends = torch.bincount(latent, minlength=sae.cfg.d_sae).cumsum(0)
    chosen = counts.nonzero().flatten().tolist() if latents is None else list(latents)
    promotes = _promoted_tokens(sae, model, chosen, n_words)
    rows = []
    for position, i in enumerate(chosen):
        mine = word[order[int(ends[i] - counts[i]) : int(ends[i])]]
        found, times = mine.unique(return_counts=True)
        top = times.argsort(descending=True, stable=True)[:n_words]
        share = (times[top[0]] / len(mine)).item() if len(mine) else float("nan")
        rows.append(
            {
                "latent": i,
                "density": (counts[i] / n).item(),
                "rank": ranks[i].item(),
                "activation": activations[i].item(),
                "fires_on": [model.tokenizer.decode([t]) for t in found[top].tolist()],
                "enrichment": share / base[found[top[0]]].item() if len(mine) else float("nan"),
                "token_share": share,
                "promotes": promotes[position],
            }
        )
    return pd.DataFrame(rows)


def _promoted_tokens(
    sae: HierarchicalTopKSAE, model: HookedModel, latents: list[int], n_words: int
) -> list[list[str]]:
    rows: list[list[str]] = []
    for start in range(0, len(latents), 256):
        logits = logit_effects(sae, model, latents[start : start + 256])
        if logits is None:
            return [[] for _ in latents]
        for top in logits.topk(n_words).indices.tolist():
            rows.append([model.tokenizer.decode([t]) for t in top])
    return rows


@torch.no_grad()
def logit_effects(
    sae: HierarchicalTopKSAE, model: HookedModel, latents: Sequence[int]
) -> torch.Tensor | None:
    """What latents' decoder rows do to the logits on their own: ``[len(latents), d_vocab]``, CPU.

    A row goes through the model's final norm, whose gain decides which tokens it raises, and the
    unembedding; so its scale is that of a residual stream which holds nothing else. None where the
    hook does not write to the residual stream.

    Raises:
        ValueError: if there is no such latent.
    """
    check_latents(sae, latents)
    if not (sae.cfg.metadata.hook_name or "").endswith(WRITES_TO_STREAM):
        return None
    rows = sae.W_dec[list(latents)].to(model.W_U)[None]
    # Half the difference of both signs, to leave a bias of the norm out.
    normed = (model.ln_final(rows) - model.ln_final(-rows))[0] / 2
    return (normed @ model.W_U).float().cpu()
