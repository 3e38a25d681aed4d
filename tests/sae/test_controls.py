"""The random decoder, which every hierarchical SAE is judged beside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import training_sae
from sae_lens import SAE

from hsae_lens.sae.controls import random_decoder


@pytest.mark.parametrize("mode", ["none", "layer_norm", "constant_norm_rescale"])
@torch.no_grad()
def test_the_random_control_is_scaled_to_do_its_best(mode: str, tmp_path: Path) -> None:
    training_sae(d_in=32, k=24, normalize_activations=mode).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    lengths = torch.linspace(0.3, 3, 300)[:, None]  # tokens of unequal norm
    noise = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    x = lengths * (sae.b_dec + noise)
    control = random_decoder(sae, x)
    torch.testing.assert_close(control.W_dec.norm(dim=-1), torch.ones(96))

    def error(gain: float) -> float:
        control.W_enc.data *= gain
        stack = control.decode_budgets(control.encode_ordered(x), list(range(1, 25)))
        control.W_enc.data /= gain
        return float((stack - x).square().sum())

    best = error(1.0)
    assert best < error(0.9)
    assert best < error(1.1)
