"""Which hooks and SAEs make a site, and their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.circuits import (
    BY_TOKEN,
    CONTEXT,
    HOOKS,
    assert_close,
    calibrated,
    dictionary,
    variant_on_model,
)
from helpers.variants import VARIANTS

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.circuits import attribute_budgets, latent_edges
from hsae_lens.circuits.sites import model_order, sites_of
from hsae_lens.evaluation.tasks.pairs import TokenizedTask
from hsae_lens.models.hooks import activations_at


def test_sites_are_in_the_model_s_order(model: Any, task: TokenizedTask) -> None:
    in_order = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z",
                "blocks.0.hook_attn_out", "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post",
                "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre",
                "blocks.10.hook_resid_pre", "ln_final.hook_normalized"]  # fmt: skip
    assert sorted(sorted(in_order), key=model_order) == in_order
    hooks = ["blocks.1.attn.hook_z", "blocks.1.hook_resid_post"]
    saes = [dictionary(model, hook, task.clean) for hook in hooks]
    assert [site.hook_name for site in sites_of(saes[::-1], model)] == hooks
    found = attribute_budgets(model, saes[::-1], task, [3], progress=False)
    edges = latent_edges(model, saes[::-1], found.nodes(3).head(9), 3, task, progress=False)
    assert set(edges["to_site"]) == {hooks[1]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_activation_is_the_sum_of_latents_bias_and_error(
    model: Any, task: TokenizedTask, variant: str
) -> None:
    (sae,) = calibrated(model, variant_on_model(variant))
    (site,) = sites_of(sae, model)
    x = activations_at(model, task.clean, [site.hook_name])[site.hook_name]
    budgets = [3, *BY_TOKEN]
    several, lengths = site.split_budgets(x, budgets)
    for k, used in zip(budgets, lengths, strict=True):
        split = site.split(x, k)
        assert ((split.latents != 0).sum(-1) <= used).all()
        if sae.dtype != torch.bfloat16:  # rounded ones may be equal, and come in any order
            assert split.latents.equal(several.code.prefixes(used).to_dense(split.d_sae))
        assert_close(split.latents @ split.W_dec + split.rest, x.flatten(2), sae)
        with torch.no_grad(), sae.using_budget(k):
            x_hat = sae(x.to(sae.dtype)).flatten(2)
        assert_close(split.x - split.rest + split.bias, x_hat.to(split.x), sae)
    assert (lengths[0] == 3).all()
    assert several.code.k == lengths.max()


def test_an_sae_that_does_not_fit_is_said(model: Any, saes: Any, task: TokenizedTask) -> None:
    def ask(saes: Any) -> None:
        attribute_budgets(model, saes, task, [8], progress=False)

    with pytest.raises(ValueError, match="different hooks"):
        ask([saes[0], saes[0]])
    wide = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=16, d_sae=48, k=8))
    wide.cfg.metadata.hook_name = HOOKS[0]
    with pytest.raises(ValueError, match="reads width d_in=16, but the model has 32"):
        ask(wide)
    lost = dictionary(model, HOOKS[0], task.clean)
    lost.cfg.metadata.hook_name = "blocks.7.hook_resid_post"
    with pytest.raises(ValueError, match="no hook 'blocks.7.hook_resid_post'"):
        ask(lost)
    foreign = dictionary(model, HOOKS[0], task.clean)
    with torch.no_grad():
        foreign.W_dec.mul_(-9)
    with pytest.raises(ValueError, match="further from the activations"):
        ask(foreign)
    late = dictionary(model, HOOKS[0], task.clean)
    late.cfg.metadata.seqpos_slice = (CONTEXT, None)
    with pytest.raises(ValueError, match="No position of these prompts"):
        ask(late)
    model.add_sae(saes[0])
    try:
        with pytest.raises(ValueError, match="reset_saes"):
            ask(saes)
    finally:
        model.reset_saes()
