"""What a pilot sees of activations: made-up ones, of which it is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hsae_lens.pilot.look import look_at, look_of

N, CONTEXT, D_IN = 40, 16, 24


def activations() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(N, CONTEXT, D_IN, generator=torch.Generator().manual_seed(0))
    return x, torch.ones(N, CONTEXT, dtype=torch.bool)


def test_leading_outliers_are_found_and_left_out_of_the_rest() -> None:
    x, counts = activations()
    x[:, :2] *= 100
    look = look_of(x, counts)
    assert look.leading == 2
    assert look.outlier_share == 0
    assert look.median_norm == pytest.approx(D_IN**0.5, rel=0.1)
    assert look.norms[0] > 50 * look.norms[2]
    assert any("first 2 positions" in line for line in look.sentences())


def test_stray_outliers_are_counted() -> None:
    x, counts = activations()
    x[:8, 5] *= 100
    assert look_of(x, counts).outlier_share == pytest.approx(8 / (N * CONTEXT))


def test_the_means_share() -> None:
    x, counts = activations()
    look = look_of(x + 3, counts)
    assert look.mean_share == pytest.approx(9 / 10, abs=0.02)


def test_wide_dimensions_and_rank() -> None:
    x, counts = activations()
    x[..., 3] *= 20
    look = look_of(x, counts)
    assert look.wide_dimensions == 1
    assert look.wide_share == pytest.approx(400 / (400 + D_IN - 1), abs=0.03)
    assert look.directions_for(0.9) == 1
    x[..., 6:] = 0
    assert look_of(x, counts).directions_for(0.999999) == 6


def test_what_does_not_count_is_not_seen() -> None:
    x, counts = activations()
    x[:, 4], counts[:, 4] = torch.nan, False
    assert look_of(x, counts).mean_share < 0.1
    counts[0, 4] = True
    with pytest.raises(FloatingPointError, match="not finite"):
        look_of(x, counts)
    with pytest.raises(ValueError, match="give more text"):
        look_of(x, torch.zeros_like(counts))


def test_of_a_model(tiny_gemma2: Any, tiny_tokens: torch.Tensor) -> None:
    look = look_at(tiny_gemma2, tiny_tokens[:8], "blocks.1.hook_resid_post")
    assert look.d_in == 32
    assert look.tokens == 8 * 32
    assert look.tokens_per_second > 0
    assert look.logits_per_second > 0
    with pytest.raises(ValueError, match=r"Did you mean .*blocks\.1\.hook_resid_post"):
        look_at(tiny_gemma2, tiny_tokens[:8], "blocks.1.hook_resid_pots")
