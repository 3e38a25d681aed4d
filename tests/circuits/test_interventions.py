"""Hooks for the latents of an attached SAE; tests/sae/test_attached.py runs others on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.circuits import HOOKS, calibrated, dictionary
from helpers.variants import VARIANTS, activations_for, assert_near, inference_variant
from sae_lens import HookedSAETransformer, SAETransformerBridge
from transformer_lens import HookedTransformerConfig

from hsae_lens import ErrorTarget, MeanBudget
from hsae_lens.circuits import ablate, keep, steer
from hsae_lens.models.hooks import activations_at, run_changed
from hsae_lens.objective.budgets import Budget


def test_ranks_are_by_size() -> None:
    acts = torch.tensor([[3.0, -5.0, 0.0, 1.0]])  # as of AbsTopK
    assert ablate(ranks=(1, 1))(acts).tolist() == [[3, 0, 0, 1]]
    assert ablate(ranks=(2, 9))(acts).tolist() == [[0, -5, 0, 0]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_sae_of_any_kind_goes_on_from_the_changed_latents(variant: str) -> None:
    sae = inference_variant(variant)
    x = activations_for(sae, 2, 5)

    def changed(change: Any) -> torch.Tensor:
        with sae.hooks(fwd_hooks=[("hook_sae_acts_post", change)]):
            return sae(x)

    def decoded(acts: torch.Tensor) -> torch.Tensor:
        sae.encode(x)  # a decode needs the norms of the latest input
        return sae.decode(acts)

    code = sae.encode_ordered(x)
    gone = code.values.clone()
    gone[..., 1:3] = 0
    left = type(code)(gone, code.indices).to_dense(sae.cfg.d_sae)
    dense = code.to_dense(sae.cfg.d_sae)
    one = int(code.indices[0, 0, 0])
    steered = dense.clone()
    steered[..., one] = 2
    assert_near(changed(ablate(ranks=(2, 3))), decoded(left))
    assert_near(changed(keep(ranks=(2, 3))), decoded(dense - left))
    assert_near(changed(steer(one, to=2)), decoded(steered))


@pytest.fixture(scope="module")
def transformer() -> Any:
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 32, "n_ctx": 64, "d_head": 16, "n_heads": 2, "d_vocab": 300}
    cfg = HookedTransformerConfig(**sizes, act_fn="relu", dtype=torch.float64)
    return HookedSAETransformer(cfg)


@pytest.mark.parametrize("k", [MeanBudget(4), ErrorTarget(0.5)], ids=str)
@pytest.mark.parametrize("kind", ["HookedSAETransformer", "bridge"])
def test_ranks_are_a_token_s_own_at_budgets_that_ask_it(
    request: pytest.FixtureRequest, transformer: Any, kind: str, k: Budget
) -> None:
    model = transformer if kind == "HookedSAETransformer" else request.getfixturevalue("model")
    tokens = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    (sae,) = calibrated(model, dictionary(model, HOOKS[1], tokens))
    name = (
        model.get_sae_hook_name(sae)
        if isinstance(model, SAETransformerBridge)
        else f"{HOOKS[1]}.hook_sae_acts_post"
    )
    sae.budget = k
    x = activations_at(model, tokens, HOOKS[1:])[HOOKS[1]]
    code, (lengths,) = sae.encode_budgets(x, [k])
    assert len(lengths.unique()) > 2
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae], prepend_bos=False)
    torch.testing.assert_close(cache[name], code.prefixes(lengths).to_dense(48))
    ranks = torch.arange(1, code.k + 1)
    for change, stays in (
        (ablate(ranks=(2, 48)), ranks < 2),
        (ablate(ranks=(1, 3)), ranks > 3),
        (keep(ranks=(2, 4)), (ranks >= 2) & (ranks <= 4)),
    ):
        stays = stays & (ranks <= lengths[..., None])
        left = type(code)(code.values * stays, code.indices).to_dense(48)
        got = model.run_with_hooks_with_saes(
            tokens, saes=[sae], prepend_bos=False, fwd_hooks=[(name, change)]
        )
        want = run_changed(model, tokens, {HOOKS[1]: lambda _, left=left: sae.decode(left)})
        torch.testing.assert_close(got, want)
