"""Examples to follow latent by latent, against the SAE's own encode and decode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.variants import activations_for

from hsae_lens import MeanBudget, calibrate
from hsae_lens.evaluation.latents import token_walkthroughs
from hsae_lens.models.hooks import hook_activations, logits_with
from hsae_lens.models.token_mask import TokenMask


@torch.no_grad()
def test_at_a_mean_budget_each_token_has_what_encode_gives_it(
    any_sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    rows, hook = tiny_tokens[:1], any_sae.cfg.metadata.hook_name
    without = token_walkthroughs(any_sae, tiny_gemma2, rows)[0]
    assert "mean" not in without
    original = hook_activations(tiny_gemma2, rows, hook)
    many = original[:, 1:].reshape(-1, *original.shape[2:]).repeat(20, *[1] * (original.ndim - 2))
    noisy = many + 0.3 * many.std() * torch.randn_like(many)
    calibrate(any_sae, noisy.flatten(1), progress=False)
    (example,) = token_walkthroughs(any_sae, tiny_gemma2, rows, n_latents=12)
    x = original[0].flatten(1)
    keep = TokenMask.from_sae(any_sae, tiny_gemma2)(rows, x[None])[0]
    distance = (x - x[keep].mean(0)).square().sum(-1)
    assert example["judged"] == keep.tolist()
    K, coarse = any_sae.cfg.k, any_sae.dtype == torch.bfloat16
    near = {"rel": 0.02 if coarse else 1e-4, "abs": 2e-3}
    for k in range(1, K + 1):
        with any_sae.using_budget(MeanBudget(k)):
            acts = any_sae.encode(original[0].to(any_sae.dtype))
            x_hat = any_sae.decode(acts).flatten(1).to(x.dtype)
        used = (acts != 0).sum(-1) * keep
        assert [lengths[k - 1] for lengths in example["mean"]["lengths"]] == used.tolist()
        explained = 1 - (x_hat - x).square().sum(-1) / distance
        for n in keep.nonzero()[:, 0].tolist():
            said = example["explained"][n][used[n]]
            assert said == pytest.approx(explained[n].item(), **near)
            largest = acts[n].float().sort(descending=True).values[: min(12, used[n])]
            values = [value for _, value in example["latents"][n][: used[n]]]
            assert values == pytest.approx(largest.tolist(), abs=0.006 + 0.01 * coarse)
        if k in example["budgets"]:
            new = torch.where(keep[:, None], x_hat, x).to(original).reshape(original.shape)
            top = logits_with(tiny_gemma2, rows, hook, new)[0].softmax(-1).max(-1)
            guessed = example["mean"]["predictions"][example["budgets"].index(k)]
            assert [token[0][1] for token in guessed] == pytest.approx(
                top.values.tolist(), abs=0.05 if coarse else 2e-3
            )
    for n, of_token in enumerate(example["mean"]["lengths"]):
        assert len(example["explained"][n]) == max(K, *of_token) + 1
        assert len(example["latents"][n]) == min(12, max(K, *of_token))
    if not coarse:  # among equal activations a longer code may begin with others
        assert example["predictions"] == without["predictions"]
        assert [shares[: K + 1] for shares in example["explained"]] == without["explained"]
        assert [latents[:K] for latents in example["latents"]] == without["latents"]
    assert max(map(len, example["explained"])) > K + 1, "no token used more than K here"


def test_tokens_that_are_not_judged_take_no_latents(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    sae.cfg.metadata.max_norm = 0.1  # none is so short
    calibrated = activations_for(sae, 600) * 1e-3
    calibrate(sae, calibrated, progress=False)
    (example,) = token_walkthroughs(sae, tiny_gemma2, tiny_tokens[:1, :8])
    assert example["mean"]["lengths"] == [[0] * sae.cfg.k] * 8
    assert {len(shares) for shares in example["explained"]} == {sae.cfg.k + 1}
    assert example["mean"]["predictions"][0] == example["predictions"][-1], "the model itself"
