"""Which tokens count, by one rule everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.util import get_special_token_ids


@dataclass(frozen=True)
class TokenMask:
    """Leaves out special tokens, positions outside a slice, and outlier norms.

    Attributes:
        positions: of a sequence, that count.
        max_norm: the longest activation that counts.
        special: token ids that do not count (BOS, EOS, PAD, …).
    """

    positions: slice
    max_norm: float
    special: torch.Tensor

    @classmethod
    def by(
        cls,
        sae: SAE[Any],
        model: Any,
        seqpos_slice: tuple[int | None, ...] | None = None,
        max_norm: float | None = None,
    ) -> TokenMask:
        """As asked, else as the SAE was trained (its metadata ``seqpos_slice``, ``max_norm``)."""
        metadata = sae.cfg.metadata
        return cls(
            slice(*(seqpos_slice or metadata.seqpos_slice or (None,))),
            longest_activation(sae, max_norm),
            torch.tensor(get_special_token_ids(model.tokenizer)),
        )

    def __call__(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Whether each token ``[batch, context]`` with activation ``[…, d_in]`` counts."""
        keep = torch.zeros_like(tokens, dtype=torch.bool)
        keep[:, self.positions] = True
        keep &= ~torch.isin(tokens, self.special.to(tokens.device))
        return keep & (x.norm(dim=-1) <= self.max_norm)


def longest_activation(sae: SAE[Any], max_norm: float | None = None) -> float:
    """The longest activation to judge: as asked, else the SAE's metadata, else no limit."""
    return float(max_norm or sae.cfg.metadata.max_norm or "inf")
