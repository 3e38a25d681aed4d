"""Controls that are trained with a part of them frozen (arXiv 2602.14111).

They see every budget, data, steps and optimizer of the real one. What they reach needs no learnt
dictionary, or no learnt encoder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from hsae_lens.sae.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

NEAREST = 0.8  # cosine between a soft-frozen decoder row and the one it started as, at least


class _PartlyFrozenSAE(HierarchicalTopKTrainingSAE):
    frozen: tuple[str, ...]

    def __init__(
        self, cfg: HierarchicalTopKTrainingSAEConfig, use_error_term: bool = False
    ) -> None:
        super().__init__(cfg, use_error_term)
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)


class FrozenDecoderSAE(_PartlyFrozenSAE):
    """The decoder's directions stay as they were drawn; encoder and biases learn to read them."""

    frozen = ("W_dec",)


class FrozenEncoderSAE(_PartlyFrozenSAE):
    """The encoder stays as it was drawn; decoder and its bias learn to make the best of it."""

    frozen = ("W_enc", "b_enc")


class SoftFrozenDecoderSAE(HierarchicalTopKTrainingSAE):
    """Decoder rows learn, within a cosine of :data:`NEAREST` of those they started as."""

    start: torch.Tensor

    def __init__(
        self, cfg: HierarchicalTopKTrainingSAEConfig, use_error_term: bool = False
    ) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("start", _unit(self.W_dec.detach()), persistent=False)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.bring_near()
        return super().training_forward_pass(step_input)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        self.bring_near()
        return super().save_inference_model(path)

    @torch.no_grad()
    def bring_near(self) -> None:
        """Turns rows that went too far back to the nearest direction that is allowed."""
        norms = self.W_dec.norm(dim=-1, keepdim=True)
        rows = self.W_dec / norms
        cosine = (rows * self.start).sum(-1, keepdim=True)
        aside = _unit(rows - cosine * self.start)
        nearest = NEAREST * self.start + (1 - NEAREST**2) ** 0.5 * aside
        self.W_dec.copy_(torch.where(cosine < NEAREST, norms * nearest, self.W_dec))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
