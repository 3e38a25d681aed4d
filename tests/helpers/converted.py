"""What a converted SAE reconstructs where its source would stop: its k, or its threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAE


def converted_at_its_own(source: Any, x: torch.Tensor, folder: Path) -> torch.Tensor:
    """Takes the source over with every latent in its code, saves it, opens it, and decodes."""
    training = HierarchicalTopKTrainingSAE.from_sae(source, k=source.cfg.d_sae)
    facts = training.cfg.metadata
    training.save_inference_model(folder)
    sae = HierarchicalTopKSAE.load_from_disk(folder)
    code = sae.encode_ordered(x)
    if facts.source_threshold is None:
        code = code.prefix(facts.source_k)
    else:
        code = code.prefixes((code.values > facts.source_threshold).sum(-1))
    return next(sae.each_budget(code, [code.k]))
