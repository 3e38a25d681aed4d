"""How far latents moved from the source's: their directions, and the contexts they stand for."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

TOP = 5  # contexts of a latent that are compared


@torch.no_grad()
def latents_moved(
    before: HierarchicalTopKSAE, after: HierarchicalTopKSAE, activations: torch.Tensor
) -> pd.DataFrame:
    """A row per latent: what a label from the source's dashboard is still worth.

    Args:
        activations: ``[n, d_in]``, heads joined, of tokens that trained neither.

    Returns:
        - ``cosine`` of the decoder row with the source's;
        - ``used_before``, ``used_after``: the share of tokens with the latent among their first K;
        - ``top_kept``: the share of its 5 tokens of the largest activation (fewer if fewer use it)
          in the source that are among its 5 now; NaN of a latent that no token used before.
    """
    cosine = torch.nn.functional.cosine_similarity(before.W_dec, after.W_dec, dim=-1)
    used, top = zip(*(_top_tokens(sae, activations) for sae in (before, after)), strict=True)
    compared = used[0].clamp(max=TOP)
    # Tokens that did not use the latent at all have no number (-1), and match none.
    kept = ((top[0][:, :, None] == top[1][:, None, :]) & (top[0][:, :, None] >= 0)).any(-1)
    return pd.DataFrame(
        {
            "latent": range(len(cosine)),
            "cosine": cosine.float().numpy(force=True),
            "used_before": (used[0] / len(activations)).numpy(),
            "used_after": (used[1] / len(activations)).numpy(),
            "top_kept": (kept.sum(-1) / compared).numpy(),  # 0 / 0 is NaN
        }
    )


def _top_tokens(
    sae: HierarchicalTopKSAE, activations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tokens use each latent ``[d_sae]``, and which most ``[d_sae, TOP]`` (-1: none)."""
    d_sae = sae.cfg.d_sae
    used = torch.zeros(d_sae, dtype=torch.int64)
    values, tokens = torch.zeros(d_sae, TOP), torch.full((d_sae, TOP), -1)
    for start, x in zip(range(0, len(activations), 512), activations.split(512), strict=True):
        acts = sae.encode_joined(x.to(sae.device, sae.dtype)).to_dense(d_sae).T.float().cpu()
        used += (acts > 0).sum(-1)
        here = torch.arange(start, start + len(x)).expand(d_sae, -1)
        values, best = torch.cat([values, acts], 1).topk(TOP)
        tokens = torch.cat([tokens, here], 1).gather(1, best)
    return used, tokens.where(values > 0, -1)


def movement(moved: pd.DataFrame) -> dict[str, Any]:
    """The table in four numbers: ``cosine`` (mean), ``cosine_5%`` (of 100 latents the fifth
    lowest), ``top_kept`` (the share of the used latents that kept most of their top contexts), and
    ``silent`` (the share of latents used before that no token uses now).
    """
    before = moved[moved["used_before"] > 0]
    return {
        "cosine": float(moved["cosine"].mean()),
        "cosine_5%": float(moved["cosine"].quantile(0.05)),
        "top_kept": float((before["top_kept"] > 0.5).mean()),
        "silent": float((before["used_after"] == 0).mean()),
    }
