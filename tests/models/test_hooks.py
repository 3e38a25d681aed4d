"""Hooked models: what is asked of them, and their activations read and changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer
from transformer_lens import HookedTransformerConfig

from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import activations_at, logits_with, run_changed

ASKED = sorted({*HookedModel.__annotations__, *(n for n in vars(HookedModel) if n[0] != "_")})


def small_transformer() -> Any:
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 32, "d_head": 16, "n_ctx": 64, "d_vocab": 300}
    return HookedSAETransformer(HookedTransformerConfig(**sizes, act_fn="relu"))


@pytest.fixture(params=["HookedSAETransformer", "bridge"])
def model(request: pytest.FixtureRequest, tiny_gemma2: Any) -> Any:
    return tiny_gemma2 if request.param == "bridge" else small_transformer()


def test_saelens_models_have_what_is_asked_of_a_hooked_model(model: Any) -> None:
    assert {"cfg", "tokenizer", "hook_dict", "run_with_hooks", "W_U"} < set(ASKED)
    assert [name for name in ASKED if not hasattr(model, name)] == []
    assert callable(model)
    assert model.W_U.shape == (model.cfg.d_model, model.cfg.d_vocab)


def test_what_is_put_back_unchanged_changes_nothing(model: Any) -> None:
    tokens = torch.arange(3, 15).reshape(2, 6)
    hook = "blocks.0.hook_resid_post"
    acts = activations_at(model, tokens, [hook, "blocks.1.hook_resid_post"])
    assert [a.shape for a in acts.values()] == [(2, 6, 32)] * 2
    logits = model(tokens, prepend_bos=False)
    torch.testing.assert_close(logits_with(model, tokens, hook, acts[hook]), logits)
    assert not torch.allclose(logits_with(model, tokens, hook, 2 * acts[hook] + 1), logits)
    seen: list[torch.Tensor] = []
    same = run_changed(model, tokens, {hook: seen.append})
    assert torch.equal(same, logits)
    assert torch.equal(seen[0], acts[hook])


def test_a_hook_that_is_not_there_is_an_error(model: Any) -> None:
    tokens = torch.arange(3, 15).reshape(2, 6)
    for ask in (
        lambda: activations_at(model, tokens, ["blocks.0.hook_resid_pots"]),
        lambda: run_changed(model, tokens, {"blocks.0.hook_resid_pots": lambda acts: None}),
    ):
        with pytest.raises(ValueError, match="The model has no hook 'blocks.0.hook_resid_pots'"):
            ask()
