"""A hierarchical SAE attached to SAELens' hooked models, at any budget, as SAELens does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.variants import VARIANTS
from sae_lens import HookedSAETransformer, SAETransformerBridge
from transformer_lens import HookedTransformerConfig

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from hsae_lens.circuits import Prompts, ablate, attribute_budgets, keep, steer
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.models.hooks import activations_at, run_changed
from hsae_lens.models.opening import open_model
from hsae_lens.sae.normalization import joined_heads

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
KINDS = ["HookedSAETransformer", "bridge", "bare bridge"]


def make_model(kind: str, gemma2_folder: Path, dtype: torch.dtype) -> Any:
    if kind == "bridge":
        return open_model(gemma2_folder, dtype=dtype)
    if kind == "bare bridge":  # without compatibility mode
        return SAETransformerBridge.boot_transformers(str(gemma2_folder), device="cpu", dtype=dtype)
    torch.manual_seed(0)
    return HookedSAETransformer(
        HookedTransformerConfig(
            n_layers=2,
            d_model=32,
            n_ctx=64,
            d_head=16,
            n_heads=2,
            d_vocab=300,
            act_fn="relu",
            dtype=dtype,
        )
    )


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, gemma2_folder: Path) -> Any:
    return make_model(request.param, gemma2_folder, torch.float32)


@pytest.fixture(scope="module", params=KINDS)
def half_model(request: pytest.FixtureRequest, gemma2_folder: Path) -> Any:
    return make_model(request.param, gemma2_folder, torch.bfloat16)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 300, (2, 10), generator=torch.Generator().manual_seed(0))


def sae_at(hook: str, d_in: int = 32, **settings: Any) -> HierarchicalTopKSAE:
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=d_in, d_sae=96, k=8, **settings))
    sae.cfg.metadata.hook_name = hook
    generator = torch.Generator().manual_seed(len(hook))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(96, d_in, generator=generator) / d_in**0.5)
        sae.W_enc.copy_(0.3 * sae.W_dec.T)
    return sae


def acts_post(model: Any, sae: Any) -> str:
    """Where an attached SAE's latents are hooked: a bridge has a name of its own for it."""
    if isinstance(model, SAETransformerBridge):
        return model.get_sae_hook_name(sae)
    return f"{sae.cfg.metadata.hook_name}.hook_sae_acts_post"


def with_change(
    model: Any, tokens: torch.Tensor, hook: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Logits with one hook's activations passed through a function, no SAE attached."""
    return run_changed(model, tokens, {hook: change})


@pytest.mark.parametrize("hook", HOOKS)
def test_the_budget_changes_between_calls(model: Any, tokens: torch.Tensor, hook: str) -> None:
    sae = sae_at(hook)
    seen = []
    for k in (1, 8, 3):
        sae.budget = k
        logits = model.run_with_saes(tokens, saes=[sae], prepend_bos=False)
        expected = with_change(model, tokens, hook, sae.at_k(k))
        torch.testing.assert_close(logits, expected)
        _, cache = model.run_with_cache_with_saes(tokens, saes=[sae], prepend_bos=False)
        acts = cache[acts_post(model, sae)]
        assert ((acts != 0).sum(-1) <= k).all()
        assert (acts != 0).any()
        seen.append(logits)
    assert not torch.allclose(seen[0], seen[1])
    model.add_sae(sae)  # attached for good, the budget still follows
    try:
        with sae.using_budget(1):
            torch.testing.assert_close(model(tokens, prepend_bos=False), seen[0])
        torch.testing.assert_close(model(tokens, prepend_bos=False), seen[2])
    finally:
        model.reset_saes()


def test_latents_are_changed_by_rank_and_by_number(model: Any, tokens: torch.Tensor) -> None:
    sae, hook = sae_at(HOOKS[1]), HOOKS[1]
    name = acts_post(model, sae)

    def run(change: Any) -> torch.Tensor:
        return model.run_with_hooks_with_saes(
            tokens, saes=[sae], prepend_bos=False, fwd_hooks=[(name, change)]
        )

    def expected(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return with_change(model, tokens, hook, lambda x: sae.decode(change(sae.encode(x))))

    def by_hand(f: torch.Tensor, first: int, last: int) -> torch.Tensor:
        order = f.argsort(dim=-1, descending=True, stable=True)
        return f.scatter(-1, order[..., first - 1 : last], 0.0)

    torch.testing.assert_close(run(ablate(ranks=(2, 3))), expected(lambda f: by_hand(f, 2, 3)))
    with sae.using_budget(2):
        torch.testing.assert_close(run(ablate(ranks=(2, 90))), expected(lambda f: by_hand(f, 2, 9)))
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae], prepend_bos=False)
    latent = int(cache[name].sum((0, 1)).argmax())

    def steered(f: torch.Tensor) -> torch.Tensor:
        f = f.clone()
        f[..., latent] = 5.0
        return f

    def without(f: torch.Tensor) -> torch.Tensor:
        return f * (torch.arange(96) != latent)

    torch.testing.assert_close(run(ablate([latent])), expected(without))
    torch.testing.assert_close(run(steer(latent, to=5)), expected(steered))
    torch.testing.assert_close(run(steer(latent, times=0)), expected(without))
    torch.testing.assert_close(
        run(steer(latent, add=2)), expected(lambda f: f + 2 * (torch.arange(96) == latent))
    )
    torch.testing.assert_close(run(keep([latent])), expected(lambda f: f - without(f)))
    with pytest.raises(ValueError, match="1 ≤ first ≤ last"):
        ablate(ranks=(0, 3))
    with pytest.raises(ValueError, match="Nothing to ablate"):
        ablate()
    with pytest.raises(ValueError, match="-1 in a table of nodes is the error"):
        ablate([5, -1])
    with pytest.raises(ValueError, match="exactly one of"):
        steer(latent)
    with pytest.raises(ValueError, match="No latent 96: the SAE has 96"):
        run(ablate([96]))


def test_the_error_term_keeps_the_model_and_the_intervention(
    model: Any, tokens: torch.Tensor
) -> None:
    sae = sae_at(HOOKS[1])
    whole = model(tokens, prepend_bos=False)
    sae.budget = 2
    spliced = model.run_with_saes(tokens, saes=[sae], use_error_term=True, prepend_bos=False)
    torch.testing.assert_close(spliced, whole, atol=1e-5, rtol=1e-5)
    model.add_sae(sae, use_error_term=True)
    try:
        name = acts_post(model, sae)
        cut = model.run_with_hooks(
            tokens, prepend_bos=False, fwd_hooks=[(name, ablate(ranks=(1, 1)))]
        )
    finally:
        model.reset_saes()
    expected = with_change(
        model,
        tokens,
        HOOKS[1],
        lambda x: x - sae.decode(sae.encode(x)) + sae.decode(ablate(ranks=(1, 1))(sae.encode(x))),
    )
    torch.testing.assert_close(cut, expected, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_several_saes(model: Any, tokens: torch.Tensor) -> None:
    saes = [sae_at(hook) for hook in HOOKS]
    saes[0].budget = 2
    logits = model.run_with_saes(tokens, saes=saes, prepend_bos=False)
    logits[:, -1].square().sum().backward()
    for sae in saes:
        for parameter in (sae.W_dec, sae.W_enc, sae.b_dec):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
    # A latent outside the budget has no part in anything.
    acts = saes[0].encode(activations_at(model, tokens, HOOKS[:1])[HOOKS[0]])
    silent = (acts == 0).flatten(0, 1).all(0)
    assert silent.any()
    assert (saes[0].W_dec.grad[silent] == 0).all()
    model.zero_grad()


def test_views_share_weights_but_not_hooks(model: Any, tokens: torch.Tensor) -> None:
    sae = sae_at(HOOKS[0])
    views = [sae.at_k(2), sae.at_k(8)]
    views[1].cfg.metadata.hook_name = HOOKS[1]
    assert sae.cfg.metadata.hook_name == HOOKS[0]
    fired: list[int] = []
    views[0].hook_sae_acts_post.add_hook(lambda acts, hook: fired.append(2))
    _, cache = model.run_with_cache_with_saes(tokens, saes=[views[1]], prepend_bos=False)
    assert not fired
    assert ((cache[acts_post(model, views[1])] != 0).sum(-1) <= 8).all()
    both = model.run_with_saes(tokens, saes=views, prepend_bos=False)
    assert fired
    alone = model.run_with_saes(tokens, saes=views[:1], prepend_bos=False)
    assert not torch.allclose(both, alone)
    sae(torch.randn(3, 32))
    assert len(fired) == 2  # once for each run that it was part of


def test_attribution_on_every_model_class(model: Any, tokens: torch.Tensor) -> None:
    sae = sae_at(HOOKS[0])
    model.run_with_saes(tokens, saes=[sae], prepend_bos=False)  # attached once before
    prompts = Prompts(tokens, lambda z: z[:, -1, 5])
    found = attribute_budgets(model, sae, prompts, [1, 8], progress=False)
    leaf = torch.zeros(1, requires_grad=True)
    x = activations_at(model, tokens, HOOKS[:1])[HOOKS[0]]
    code = sae.encode(x)
    one = int(code[0, -1].argmax())
    change = leaf * code[0, -1, one].detach() * sae.W_dec[one].detach()
    last = torch.zeros(2, 10, 1).index_fill(1, torch.tensor([9]), 1)
    last[1] = 0
    logits = with_change(model, tokens, HOOKS[0], lambda acts: acts + last * change)
    (expected,) = torch.autograd.grad(logits[0, -1, 5], leaf)
    got = found.sites[HOOKS[0]].per_pair(8)[0, -1, one]
    torch.testing.assert_close(got, expected[0], atol=1e-6, rtol=1e-4)


def check_it_runs_in_the_models_dtype(
    model: Any, tokens: torch.Tensor, hook: str, **settings: Any
) -> None:
    """Through each of SAELens' doors, and what comes out is what a cast by hand gives."""
    x = activations_at(model, tokens, [hook])[hook]
    sae = sae_at(hook, x.flatten(2).shape[-1], **settings)
    whole = model(tokens, prepend_bos=False)

    def by_hand(acts: torch.Tensor) -> torch.Tensor:
        with joined_heads(sae):
            code = sae.encode_ordered(acts.flatten(2).to(sae.dtype)).prefix(sae.budget)
            return sae.decode(code.to_dense(96)).to(acts.dtype).reshape(acts.shape)

    sae.budget = 3
    expected = with_change(model, tokens, hook, by_hand)
    assert expected.dtype == whole.dtype
    logits = model.run_with_saes(tokens, saes=[sae], prepend_bos=False)
    torch.testing.assert_close(logits, expected)
    model.add_sae(sae)
    try:
        torch.testing.assert_close(model(tokens, prepend_bos=False), expected)
    finally:
        model.reset_saes()
    for use_error_term in (False, True):
        logits, cache = model.run_with_cache_with_saes(
            tokens, saes=[sae], use_error_term=use_error_term, prepend_bos=False
        )
        want, other = (whole, expected) if use_error_term else (expected, whole)
        assert (logits - want).norm() < 0.1 * (logits - other).norm()
        name = acts_post(model, sae)
        assert cache[name].dtype == sae.dtype, "latents keep the SAE's precision"
        assert cache[name.replace("acts_post", "output")].dtype == x.dtype
    logits = model.run_with_saes(tokens, saes=[sae], prepend_bos=False)
    logits[:, -1].float().square().sum().backward()
    for parameter in (sae.W_dec, sae.W_enc, sae.b_dec):
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0
    model.zero_grad()


EVERY_KIND = [
    (variant, hook)
    for variant in VARIANTS
    for hook in ("blocks.0.attn.hook_z", HOOKS[1], "blocks.0.mlp.hook_post")
    if ("heads" in variant) == hook.endswith("_z")
]


@pytest.mark.parametrize(("variant", "hook"), EVERY_KIND)
def test_an_sae_of_any_kind_runs_on_a_bfloat16_model(
    half_model: Any, tokens: torch.Tensor, variant: str, hook: str
) -> None:
    check_it_runs_in_the_models_dtype(half_model, tokens, hook, **VARIANTS[variant])


@pytest.mark.parametrize(("variant", "hook"), EVERY_KIND)
def test_an_sae_of_any_kind_runs_on_a_float32_model(
    model: Any, tokens: torch.Tensor, variant: str, hook: str
) -> None:
    check_it_runs_in_the_models_dtype(model, tokens, hook, **VARIANTS[variant])


def test_the_dtype_wanted_goes_with_the_activations_not_with_the_sae() -> None:
    sae = sae_at(HOOKS[0])
    x = torch.randn(3, 32)
    acts, low = sae.encode(x), sae.encode(x.bfloat16())
    assert low.dtype == torch.float32
    assert sae.decode(acts).dtype == torch.float32
    assert sae.decode(low).dtype == sae(x.bfloat16()).dtype == torch.bfloat16
    assert sae.decode(low.clone()).dtype == torch.float32
    kept = acts.detach().clone()
    with sae.hooks(fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: kept)]):
        assert sae(x.bfloat16()).dtype == torch.bfloat16
        assert sae(x).dtype == sae.decode(kept).dtype == torch.float32
    assert sae(torch.ones(3, 32, dtype=torch.int64)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sae(x).dtype == sae.at_k(8)(x).dtype


def test_budgets_are_evaluated_and_attributed_on_a_bfloat16_model(
    half_model: Any, tokens: torch.Tensor
) -> None:
    sae = sae_at(HOOKS[0])
    prompts = Prompts(tokens, lambda z: z[:, -1, 5])
    found = attribute_budgets(half_model, sae, prompts, [1, 8], progress=False)
    assert found.sites[HOOKS[0]].per_pair(8).abs().sum() > 0
    table = evaluate_budgets(sae, half_model, tokens, [1, 8], progress=False)
    x = activations_at(half_model, tokens, HOOKS[:1])[HOOKS[0]].float().flatten(0, 1)
    for k, explained in zip(table["k"], table["explained_variance"], strict=True):
        with sae.using_budget(k):
            off = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        assert explained == pytest.approx(1 - off.item(), abs=1e-4)
    assert table["ce_with_sae"].notna().all()
