"""Other tools' interfaces: theirs where they install beside SAELens, else what they call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.variants import VARIANTS, activations_for, assert_near, inference_variant

from hsae_lens import (
    ErrorTarget,
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    MeanBudget,
    calibrate,
)
from hsae_lens.circuits import as_dictionary, as_featurizer
from hsae_lens.objective.budgets import Budget
from hsae_lens.sae.normalization import normalization_of


@pytest.fixture
def sae() -> HierarchicalTopKSAE:
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=32, d_sae=96, k=8))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = torch.randn(96, 32, generator=generator)
        sae.W_dec.copy_(rows / rows.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(0.3 * sae.W_dec.T)
        sae.b_dec.normal_(generator=generator)
    return sae


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def test_dictionary_learning_s_own_topk_computes_the_same(sae: Any, x: torch.Tensor) -> None:
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    theirs, ours = AutoEncoderTopK(32, 96, 4), as_dictionary(sae, 4)
    with torch.no_grad():
        theirs.encoder.weight.copy_(sae.W_enc.T)
        theirs.encoder.bias.copy_(sae.b_enc)
        theirs.decoder.weight.copy_(sae.W_dec.T)
        theirs.b_dec.copy_(sae.b_dec)
    assert (ours.dict_size, ours.activation_dim) == (theirs.dict_size, theirs.activation_dim)
    # As feature-circuits calls them: attribution.py and ablation.py.
    for mine, other in zip(
        ours(x, output_features=True), theirs(x, output_features=True), strict=True
    ):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(x - ours(x) + ours.decode(ours.encode(x)), x)
    dense = torch.rand(2, 5, 96)  # integrated gradients decode any number of latents
    torch.testing.assert_close(ours.decode(dense), theirs.decode(dense))


def test_feature_circuits_attribution_by_its_steps(sae: Any, x: torch.Tensor) -> None:
    """What its attribution does with a dictionary, on ours: latents and error as leaves."""
    dictionary = as_dictionary(sae, 4)
    x_hat, f = dictionary(x, output_features=True)
    residual = (x - x_hat).detach().requires_grad_()
    f = f.detach().requires_grad_()
    (dictionary.decode(f) + residual).square().sum().backward()
    assert f.grad is not None
    assert residual.grad is not None
    torch.testing.assert_close(residual.grad, 2 * x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(f.grad, residual.grad @ sae.W_dec.T, atol=1e-4, rtol=1e-4)
    latents = dictionary.encode(x)
    latents[..., 3] = 0.0  # it writes into what encode returns
    assert (sae.budget, dictionary.k) == (8, 4)


def test_a_featurizer_takes_apart_and_puts_together(sae: Any, x: torch.Tensor) -> None:
    featurize, unfeaturize, n_features = as_featurizer(sae, 4)
    features, error = featurize(x)
    assert features.shape == (2, 5, n_features)
    assert ((features != 0).sum(-1) <= 4).all()
    torch.testing.assert_close(unfeaturize(features, error), x)
    base, source = featurize(x[:1]), featurize(x[1:])
    swapped = torch.where(torch.arange(96) < 48, source[0], base[0])  # an interchange
    assert unfeaturize(swapped, base[1]).shape == x[:1].shape
    half, rest = featurize(x.bfloat16())
    assert half.dtype == rest.dtype == torch.bfloat16
    assert {id(p) for p in featurize.parameters()} == {id(p) for p in sae.parameters()}


@pytest.mark.parametrize("k", [MeanBudget(4), ErrorTarget(0.8)], ids=str)
def test_budgets_that_ask_tokens(sae: Any, x: torch.Tensor, k: Budget) -> None:
    for adapter in (as_dictionary, as_featurizer):
        with pytest.raises(ValueError, match="no thresholds for mean budgets"):
            adapter(sae, k)
    sample, x = torch.randn(1024, 32, generator=torch.Generator().manual_seed(2)), x + sae.b_dec
    calibrate(sae, sample + sae.b_dec, progress=False)
    dictionary = as_dictionary(sae, k)
    x_hat, f = dictionary(x, output_features=True)
    with sae.using_budget(k):
        assert f.equal(sae.encode(x))
        assert_near(x_hat, sae(x))
    assert len((f != 0).sum(-1).unique()) > 1
    assert sae.budget == 8
    featurize, unfeaturize, _ = as_featurizer(sae, k)
    features, error = featurize(x)
    assert features.equal(f)
    torch.testing.assert_close(unfeaturize(features, error), x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_sae_of_any_kind_round_trips_or_is_refused(variant: str) -> None:
    """A decoder that needs the norms of its input cannot be called on its own."""
    sae = inference_variant(variant)
    with pytest.raises(ValueError, match="outside 1..8"):
        as_dictionary(sae, 9)
    if normalization_of(sae).kept:
        for adapter in (as_dictionary, as_featurizer):
            with pytest.raises(ValueError, match="norms of the latest input"):
                adapter(sae, 4)
        return
    x = activations_for(sae, 2, 5)
    with sae.using_budget(4):
        whole = sae(x).reshape(2, 5, -1)
    x = x.reshape(2, 5, -1)
    assert_near(as_dictionary(sae, 4)(x), whole)
    featurize, unfeaturize, _ = as_featurizer(sae, 4)
    assert_near(unfeaturize(*featurize(x)), x)


def test_the_nnsight_recipe(sae: Any, gemma2_folder: Path) -> None:
    from nnsight import TransformersModel

    model: Any = TransformersModel(
        str(gemma2_folder),
        task="text-generation",
        device_map="cpu",
        dispatch=True,
        dtype=torch.float32,
    )
    sae.budget = 4
    with model.trace("The keys are"):
        x = model.model.layers[0].output
        f = sae.encode(x).detach().requires_grad_()
        error = (x - sae.decode(f)).detach().requires_grad_()
        latents = f.save()
        model.model.layers[0].output = sae.decode(f) + error
        logits = model.output.logits.save()
        metric = logits[:, -1, 5].sum()
        with metric.backward():
            of_error = error.grad.save()
            of_latents = f.grad.save()
    with model.trace("The keys are"):
        untouched = model.output.logits.save()
    torch.testing.assert_close(logits, untouched, atol=1e-4, rtol=1e-4)
    assert (latents != 0).any()
    torch.testing.assert_close(of_latents, of_error @ sae.W_dec.T, atol=1e-6, rtol=1e-4)
