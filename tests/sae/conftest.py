"""What the tests of the architecture share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import training_sae
from sae_lens import SAE

from hsae_lens import HierarchicalTopKSAE


@pytest.fixture
def sae(tmp_path: Path) -> HierarchicalTopKSAE:
    """The inference form of a small training SAE, from its files."""
    training_sae().save_inference_model(tmp_path / "sae")
    return SAE.load_from_disk(tmp_path / "sae")


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 5, 24)
