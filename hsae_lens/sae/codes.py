"""Any SAE's ordered code, and what it reconstructs from it at each budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import sequences_at_once
from hsae_lens.models.token_mask import TokenMask, kept_activations, masked_batches
from hsae_lens.objective.budgets import Budget, ErrorTarget, MeanBudget, check_spending
from hsae_lens.objective.ordered_code import OrderedCode
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE


def largest_budget(sae: Any) -> int:
    """The largest budget that an SAE of any architecture can be cut to: its k, else d_sae."""
    return int(getattr(sae.cfg, "k", sae.cfg.d_sae))


def check_budget_of(sae: SAE[Any], budget: Budget) -> Any:
    """The budget, if the SAE, of any architecture, has it.

    Raises:
        ValueError: if not: a stock SAE has fixed budgets only.
    """
    if isinstance(sae, HierarchicalTopKSAE):
        return sae.check_budget(budget)
    if isinstance(budget, MeanBudget | ErrorTarget):
        raise ValueError(
            f"A {sae.cfg.architecture()!r} SAE is cut to a fixed number of latents per token; the "
            f"budget {budget} needs a hierarchical SAE."
        )
    return check_spending(budget, largest_budget(sae))


def ordered_code(
    sae: SAE[Any],
    x: torch.Tensor,
    budgets: Sequence[Budget],
    keep: torch.Tensor | None = None,
) -> tuple[OrderedCode, torch.Tensor]:
    """As :meth:`HierarchicalTopKSAE.encode_budgets`, of any SAE: a code, no longer than needed.

    Raises:
        ValueError: if the SAE has not all of the budgets.
    """
    if isinstance(sae, HierarchicalTopKSAE):
        code, lengths = sae.encode_budgets(x, budgets, keep)
        return code.prefix(max(1, int(lengths.max()))) if lengths.numel() else code, lengths
    fixed = [check_budget_of(sae, budget) for budget in budgets]  # ints: it refuses others
    code = OrderedCode.from_activations(sae.encode(x), max(fixed))
    return code, torch.stack([torch.full_like(code.indices[..., 0], k) for k in fixed])


def decode_first(sae: SAE[Any], code: OrderedCode, j: int) -> torch.Tensor:
    """x̂ from the first j latents of the SAE's latest code; at 0 what it makes of none, the bias."""
    if isinstance(sae, HierarchicalTopKSAE):
        return next(sae.each_budget(code, [j]))
    if j == 0:
        return sae.decode(code.values.new_zeros(*code.values.shape[:-1], sae.cfg.d_sae))
    return sae.decode(code.prefix(j).to_dense(sae.cfg.d_sae))


def each_reconstruction(
    sae: SAE[Any], original: torch.Tensor, keep: torch.Tensor, budgets: Sequence[Budget]
) -> Iterator[tuple[Budget, OrderedCode, torch.Tensor]]:
    """(budget, its ordered code, x̂), never two at a time.

    Args:
        original: activations ``[..., d_in]``, or with heads to join ``[..., n_heads, d_head]``.
        keep: which of these tokens matter ``[...]``, as ``encode_budgets`` takes it.
        budgets: fixed ones first, ascending, 0 among them if asked.
    """
    batch_dims = keep.ndim
    joined = original if sae.hook_z_reshaping_mode else original.flatten(batch_dims)
    sae_in = joined.to(sae.device)
    if not isinstance(sae, HierarchicalTopKSAE):
        for budget in budgets:
            # Encoded for every budget: some normalisations are undone by one decode only.
            code, _ = ordered_code(sae, sae_in, [budget or 1])
            yield budget, code, decode_first(sae, code, code.k if budget else 0)
        return
    fixed = [budget for budget in budgets if isinstance(budget, int)]
    others = budgets[len(fixed) :]
    used_by: Iterable[torch.Tensor] = ()
    if others:
        whole, used_by = sae.encode_budgets(sae_in, others, keep)
    else:
        whole = sae.encode_ordered(sae_in)
    for j, x_hat in zip(fixed, sae.each_budget(whole, fixed), strict=True):
        yield j, whole.prefix(max(1, j)), x_hat
    for budget, used in zip(others, used_by, strict=True):
        code = whole.prefixes(used)
        yield budget, code, decode_first(sae, code, code.k)


@dataclass(frozen=True)
class CodedBatch:
    """Some sequences as ordered codes. tokens, keep: ``[batch, context]``, on the CPU; keep: which
    tokens count.  code: ``[batch, context, K]``, where the SAE is."""

    tokens: torch.Tensor
    code: OrderedCode
    keep: torch.Tensor


@torch.no_grad()
def each_code(
    sae: HierarchicalTopKSAE,
    model: HookedModel,
    tokens: torch.Tensor,
    batch_size: int = 16,
    doing: str | None = None,
) -> Iterator[CodedBatch]:
    """The codes of token sequences ``[n, context]``, and which tokens the SAE was trained on.

    Args:
        doing: what a progress bar says; None for no bar.

    Raises:
        FloatingPointError: as :func:`masked_batches`.
    """
    mask, name = TokenMask.from_sae(sae, model), str(sae.cfg.metadata.hook_name)
    for batch in masked_batches(model, tokens, name, mask, batch_size, doing):
        yield CodedBatch(batch.tokens, sae.encode_joined(batch.x), batch.keep)


@torch.no_grad()
def masked_activations(
    sae: SAE[Any], model: HookedModel, tokens: torch.Tensor, batch_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that count: activations ``[n, d_in]``, float32, and of which sequence ``[n]``.

    Raises:
        ValueError: if none does.
        FloatingPointError: as :func:`masked_batches`.
    """
    batch_size = batch_size or sequences_at_once(model, tokens.shape[1])
    mask, name = TokenMask.from_sae(sae, model), str(sae.cfg.metadata.hook_name)
    kept, sequences = kept_activations(model, tokens, name, mask, batch_size, "Activations")
    if not len(kept):
        raise ValueError(
            f"No token is left to judge in {tokens.numel():,}: give more text, or see the SAE's "
            "seqpos_slice and max_norm."
        )
    return kept.float(), sequences
