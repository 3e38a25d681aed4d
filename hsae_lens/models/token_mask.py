"""Which tokens count, by one rule everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.util import get_special_token_ids
from tqdm.auto import tqdm

from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import activations_at


@dataclass(frozen=True, eq=False)  # tensors do not compare as a whole
class TokenMask:
    """Leaves out special tokens, positions outside a slice, and outlier norms.

    Attributes:
        special: token ids that do not count (BOS, EOS, PAD, …).
        positions: of a sequence, that count.
        max_norm: the longest activation that counts. A few tokens park norms 50 times the usual
            there, and squared errors would see little else.
    """

    special: torch.Tensor
    positions: slice = field(default_factory=lambda: slice(None))
    max_norm: float = float("inf")

    @classmethod
    def from_model(
        cls, model: HookedModel, positions: slice = slice(None), max_norm: float = float("inf")
    ) -> TokenMask:
        """Leaves out the special tokens of the model's tokenizer, and what else is asked.

        To ask for other positions and keep the limit that an SAE was trained with:
        ``dataclasses.replace(TokenMask.from_sae(sae, model), positions=slice(4, None))``.
        """
        return cls(torch.tensor(get_special_token_ids(model.tokenizer)), positions, max_norm)

    @classmethod
    def from_sae(cls, sae: SAE[Any], model: HookedModel) -> TokenMask:
        """The tokens that the SAE was trained on: its metadata's ``seqpos_slice``, ``max_norm``."""
        positions = slice(*(sae.cfg.metadata.seqpos_slice or (None,)))
        return cls.from_model(model, positions, longest_activation(sae))

    def __call__(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Whether each token ``[batch, context]`` with activation ``[…, d_in]`` counts."""
        keep = torch.zeros_like(tokens, dtype=torch.bool)
        keep[:, self.positions] = True
        keep &= ~torch.isin(tokens, self.special.to(tokens.device))
        # Not "at most": a NaN is no outlier, and is to be found, not left out.
        return keep & ~(x.norm(dim=-1) > self.max_norm)


def longest_activation(sae: SAE[Any]) -> float:
    """The longest activation that an SAE was trained on, by its metadata; infinite without."""
    return float(sae.cfg.metadata.max_norm or "inf")


@dataclass(frozen=True)
class MaskedBatch:
    """Some sequences at a hook.

    tokens, keep: ``[batch, context]``, on the CPU; keep: which count.  x: ``[batch, context,
    d_in]``, heads joined, and kept: those that count ``[n, d_in]``, both where the model has them.
    """

    tokens: torch.Tensor
    keep: torch.Tensor
    x: torch.Tensor
    kept: torch.Tensor


def masked_batches(
    model: HookedModel,
    tokens: torch.Tensor,
    hook_name: str,
    mask: TokenMask,
    batch_size: int,
    doing: str | None = None,
) -> Iterator[MaskedBatch]:
    """A hook's activations of token sequences ``[n, context]``, and which of them count.

    Args:
        doing: what a progress bar says; None for no bar.

    Raises:
        FloatingPointError: if an activation that counts is NaN or infinite.
    """
    for found in masked_batches_at(model, tokens, [hook_name], mask, batch_size, doing):
        yield found[hook_name]


def masked_batches_at(
    model: HookedModel,
    tokens: torch.Tensor,
    hook_names: Sequence[str],
    mask: TokenMask,
    batch_size: int,
    doing: str | None = None,
) -> Iterator[dict[str, MaskedBatch]]:
    """As :func:`masked_batches`, of several hooks from one pass over the model, by hook.

    The same tokens count at all of them: those that count at each.

    Raises:
        FloatingPointError: as :func:`masked_batches`.
    """
    for batch in tqdm(tokens.split(batch_size), doing, disable=doing is None):
        batch = batch.cpu()
        found = activations_at(model, batch, hook_names)
        at = {name: found[name].flatten(2) for name in hook_names}
        keep = torch.stack([mask(batch.to(x.device), x).cpu() for x in at.values()]).all(0)
        yield {name: _masked_batch(name, batch, keep, x) for name, x in at.items()}


def _masked_batch(
    hook_name: str, tokens: torch.Tensor, keep: torch.Tensor, x: torch.Tensor
) -> MaskedBatch:
    kept = x[keep.to(x.device)]
    if not torch.isfinite(kept).all():
        raise FloatingPointError(f"The model's activations at {hook_name} are not finite.")
    return MaskedBatch(tokens, keep, x, kept)


def kept_activations(
    model: HookedModel,
    tokens: torch.Tensor,
    hook_name: str,
    mask: TokenMask,
    batch_size: int,
    doing: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of sequences that count ``[n, d_in]``, and which sequence each is of ``[n]``.

    On the CPU, in the model's number format.

    Raises:
        FloatingPointError: as :func:`masked_batches`.
    """
    batches = masked_batches(model, tokens, hook_name, mask, batch_size, doing)
    numbers = torch.arange(len(tokens)).split(batch_size)
    kept, sequences = [], []
    for batch, here in zip(batches, numbers, strict=True):
        kept.append(batch.kept.cpu())
        sequences.append(here[:, None].expand(batch.keep.shape)[batch.keep])
    return torch.cat(kept), torch.cat(sequences)
