"""Hooks for the latents of an attached SAE; tests/sae/test_attached.py runs them on models."""

from __future__ import annotations

import torch

from hsae_lens.circuits import ablate


def test_ranks_are_by_size() -> None:
    acts = torch.tensor([[3.0, -5.0, 0.0, 1.0]])  # as of AbsTopK
    assert ablate(ranks=(1, 1))(acts).tolist() == [[3, 0, 0, 1]]
    assert ablate(ranks=(2, 9))(acts).tolist() == [[0, -5, 0, 0]]
