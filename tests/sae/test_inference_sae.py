"""The inference SAE: SAELens' TopK plus an order and a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import training_sae
from helpers.variants import (
    VARIANTS,
    activations_for,
    assert_near,
    inference_variant,
    training_variant,
)
from sae_lens import SAE, TopKSAE

from hsae_lens import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAEConfig,
)
from hsae_lens.sae.normalization import joined_heads


@pytest.mark.parametrize("variant", VARIANTS)
def test_encode_keeps_the_budget(variant: str) -> None:
    sae = inference_variant(variant)
    x = activations_for(sae, 3, 5)
    whole = sae.encode_ordered(x)
    assert whole.values.dtype == sae.dtype
    assert (whole.values.diff(dim=-1) <= 0).all()
    for k in (1, 3, 8):
        with sae.using_budget(k) as same:
            acts = same.encode(x)
        assert ((acts != 0).sum(-1) <= k).all()
        assert torch.equal(acts, whole.prefix(k).to_dense(96))


def test_the_budget_in_use_is_set_and_restored(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    assert sae.budget == 8
    with sae.using_budget(3) as same:
        assert same is sae
        assert sae.budget == 3
    assert sae.budget == 8
    with pytest.raises(AttributeError, match=r"Set sae.budget; sae.cfg.k is the largest"):
        sae.k = 2
    assert not hasattr(sae, "k")
    sae.budget = 2
    assert sae.encode_ordered(x).k == 8, "an ordered code always holds every latent"
    with pytest.raises(RuntimeError), sae.using_budget(5):
        raise RuntimeError
    assert sae.budget == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_decode_budgets_equals_decode(variant: str) -> None:
    sae, budgets = inference_variant(variant), [1, 2, 5, 8]
    x = activations_for(sae, 3, 5)
    stack = sae.decode_budgets(sae.encode_ordered(x), budgets)
    assert stack.shape == (4, *x.shape)
    for k, reconstruction in zip(budgets, stack, strict=True):
        with sae.using_budget(k):
            assert_near(reconstruction, sae(x))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "heads" in name])
def test_heads_are_joined_and_split(variant: str) -> None:
    sae = inference_variant(variant)
    z = activations_for(sae, 2, 5)
    assert z.shape == sae(z).shape == (2, 5, 4, 6)
    joined = sae.encode_joined(z.flatten(2))
    assert torch.equal(joined.values, sae.encode_ordered(z).values)
    with joined_heads(sae):
        flat = sae(z.flatten(2))
    assert torch.equal(flat, sae(z).flatten(2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_k_is_a_stock_sae_on_the_same_weights(variant: str, tmp_path: Path) -> None:
    sae = inference_variant(variant)
    x = activations_for(sae, 3, 5)
    stock = sae.at_k(3)
    assert type(stock) is TopKSAE
    assert stock.cfg.architecture() == "topk"
    assert stock.cfg.k == 3
    assert all(getattr(stock, n) is getattr(sae, n) for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
    assert set(stock.hook_dict) == set(sae.hook_dict)
    assert not set(map(id, stock.hook_dict.values())) & set(map(id, sae.hook_dict.values()))
    stock.cfg.metadata.note = "own"
    assert "note" not in sae.cfg.metadata
    with sae.using_budget(3):
        torch.testing.assert_close(stock(x), sae(x))
    stock.save_model(tmp_path / "stock")
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "stock")(x), stock(x))


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float64(2), "2", None])
@pytest.mark.parametrize("field", ["d_in", "d_sae", "k"])
def test_what_is_no_whole_number_is_refused(field: str, value: Any) -> None:
    for config in (HierarchicalTopKSAEConfig, HierarchicalTopKTrainingSAEConfig):
        with pytest.raises(ValueError, match=f"{field} must be a whole number, got"):
            config(**{"d_in": 24, "d_sae": 96, "k": 8, field: value})


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_inference_form_computes_the_same(variant: str, tmp_path: Path) -> None:
    trained = training_variant(variant, dtype="float64")
    trained.save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.metadata.training_architecture == "hierarchical_topk"
    x = activations_for(trained, 3, 5)
    with joined_heads(sae):
        torch.testing.assert_close(sae.encode(x), trained.encode(x))
        torch.testing.assert_close(sae(x), trained(x))


def test_folding_decoder_norms(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    weights = sae.W_dec.clone()
    sae.fold_W_dec_norm()
    assert torch.equal(sae.W_dec, weights), "its norms are 1"

    sae, x = inference_variant("plain", dtype="float64"), x.double()
    before_acts, before = sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96, dtype=torch.float64))
    torch.testing.assert_close(sae.encode(x), before_acts)
    torch.testing.assert_close(sae(x), before)

    unfoldable = inference_variant("plain", rescale_acts_by_decoder_norm=False)
    with pytest.raises(NotImplementedError, match="change the order"):
        unfoldable.fold_W_dec_norm()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("b_dec_in", [True, False])
def test_folding_whitening_and_scaling(rescale: bool, b_dec_in: bool, x: torch.Tensor) -> None:
    sae = training_sae(
        dtype="float64", rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=b_dec_in
    )
    torch.manual_seed(3)
    mean, M = torch.randn(24).double(), torch.randn(24, 24).double() / 5
    before = sae((x.double() - mean) @ M) @ M.inverse() + mean
    sae.fold_activation_whitening(mean, M, M.inverse())
    torch.testing.assert_close(sae(x.double()), before)

    sae = training_sae(dtype="float64", apply_b_dec_to_input=b_dec_in)
    before = sae(x.double() * 3) / 3
    sae.fold_activation_norm_scaling_factor(3.0)
    torch.testing.assert_close(sae(x.double()), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_hooks_fire_and_interventions_hold(variant: str) -> None:
    sae = inference_variant(variant)
    x = activations_for(sae, 3, 5)
    out, cache = sae.run_with_cache(x)
    assert torch.equal(out, sae(x))
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))
    bias = next(sae.each_budget(sae.encode_ordered(x), [0]))

    def keep_none(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(acts)

    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", keep_none)])
    torch.testing.assert_close(out, bias)
    if sae.cfg.normalize_activations == "none" and not sae.hook_z_reshaping_mode:
        torch.testing.assert_close(out, sae.b_dec.expand_as(x))


def test_bad_budgets_and_widths(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    for k in (0, 9, 2.5, True, np.float32(2), np.True_):
        with pytest.raises(ValueError, match="budget"):
            sae.budget = k
        with pytest.raises(ValueError, match="budget"):
            sae.at_k(k)
    with pytest.raises(ValueError, match="outside 1..k=8"):
        sae.decode_budgets(sae.encode_ordered(x), [4, 9])
    with pytest.raises(ValueError, match="width d_sae=96"):
        sae.decode(torch.zeros(2, 95))
    with pytest.raises(ValueError, match="width d_in=24"):
        sae.encode(torch.zeros(2, 23))
    with pytest.raises(ValueError, match="k must be in 1..d_sae=4, got 5"):
        HierarchicalTopKSAEConfig(d_in=2, d_sae=4, k=5)
    with pytest.raises(ValueError, match="default_budget 5 is outside 1..4"):
        HierarchicalTopKSAEConfig(d_in=2, d_sae=8, k=4, default_budget=5)
