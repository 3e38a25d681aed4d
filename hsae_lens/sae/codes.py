"""Any SAE's ordered code, and what it reconstructs from it at each budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.models.hooks import hook_activations, sequences_at_once
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.sae.inference import HierarchicalTopKSAE


def largest_budget(sae: Any) -> int:
    """The largest budget that an SAE of any architecture can be cut to: its k, else d_sae."""
    return int(getattr(sae.cfg, "k", sae.cfg.d_sae))


def each_reconstruction(
    sae: SAE[Any], original: torch.Tensor, batch_dims: int, budgets: list[int]
) -> Iterator[tuple[int, OrderedCode, torch.Tensor]]:
    """(budget, its ordered code, x̂) for ascending budgets, 0 included, never two at a time."""
    joined = original if sae.hook_z_reshaping_mode else original.flatten(batch_dims)
    sae_in = joined.to(sae.device)
    if isinstance(sae, HierarchicalTopKSAE):
        code = sae.encode_ordered(sae_in)
        for j, x_hat in zip(budgets, sae.each_budget(code, budgets), strict=True):
            yield j, code.prefix(max(1, j)), x_hat
        return
    for j in budgets:
        # Encoded for every budget: some normalisations are undone by one decode only.
        acts = sae.encode(sae_in)
        code = OrderedCode.from_activations(acts, max(1, j))
        yield j, code, sae.decode(code.to_dense(sae.cfg.d_sae) if j else torch.zeros_like(acts))


@torch.no_grad()
def masked_activations(
    sae: SAE[Any], model: Any, tokens: torch.Tensor, batch_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that count: activations ``[n, d_in]``, float32, and of which sequence ``[n]``.

    Raises:
        ValueError: if none does.
    """
    batch_size = batch_size or sequences_at_once(model, tokens.shape[1])
    judged, kept, sequences = TokenMask.by(sae, model), [], []
    numbers = torch.arange(len(tokens)).split(batch_size)
    for batch, here in zip(tqdm(tokens.split(batch_size), "Activations"), numbers, strict=True):
        x = hook_activations(model, batch, sae.cfg.metadata.hook_name).flatten(2).cpu()
        keep = judged(batch.cpu(), x)
        kept.append(x[keep].float())
        sequences.append(here[:, None].expand(keep.shape)[keep])
    if not any(map(len, kept)):
        raise ValueError(
            f"No token is left to judge in {tokens.numel():,}: give more text, or see the SAE's "
            "seqpos_slice and max_norm."
        )
    return torch.cat(kept), torch.cat(sequences)
