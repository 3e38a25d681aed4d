"""What tests of several rooms use."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch

from hsae_lens import HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Writing fails in the middle of any file larger than ``size`` bytes.

    Progress bars go nowhere meanwhile: pytest keeps them in a file, and a bar that cannot be drawn
    leaves tqdm's lock taken for good.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def training_sae(**overrides: Any) -> HierarchicalTopKTrainingSAE:
    """A small training SAE with weights that are not symmetric in any way."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"d_in": 24, "d_sae": 96, "k": 8, **overrides}
    sae = HierarchicalTopKTrainingSAE(HierarchicalTopKTrainingSAEConfig(**settings))
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(sae.cfg.d_sae, 1, dtype=sae.dtype) + 0.5)
        sae.b_enc.normal_(std=0.1)
        sae.b_dec.normal_()
    return sae
