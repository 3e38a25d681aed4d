"""Dictionaries that have learnt nothing, of every kind that an SAE can be."""

from __future__ import annotations

import pytest
import torch
from helpers.variants import VARIANTS, activations_for, assert_near, inference_variant

from hsae_lens.sae.controls import neuron_basis, random_decoder
from hsae_lens.sae.normalization import joined_heads


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_random_control_is_scaled_to_do_its_best(variant: str) -> None:
    sae = inference_variant(variant, d_in=32, k=24)
    lengths = torch.linspace(0.3, 3, 300)[:, None]  # tokens of unequal norm
    noise = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    x = (lengths * (sae.b_dec + noise)).to(sae.dtype)
    control = random_decoder(sae, x)
    assert_near(control.W_dec.norm(dim=-1), torch.ones(96, dtype=sae.dtype))
    fitted = control.W_enc.clone()

    def error(gain: float) -> float:
        control.W_enc.copy_(gain * fitted)
        with joined_heads(control):
            stack = control.decode_budgets(control.encode_ordered(x), list(range(1, 25)))
        return float((stack - x).double().square().sum())

    best = error(1.0)
    assert best < error(0.9)
    assert best < error(1.1)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_all_of_the_models_own_coordinates_lose_nothing(variant: str) -> None:
    sae = inference_variant(variant)
    x = activations_for(sae, 50)
    basis = neuron_basis(sae, x.reshape(50, 24).float().mean(0))
    assert basis.cfg.k == 24
    assert_near(basis(x), x)
