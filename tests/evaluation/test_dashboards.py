"""Dashboards of latents, against what the SAE encodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hsae_lens import load_pretrained
from hsae_lens.evaluation.latents.dashboards import latent_dashboards
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.opening import open_model
from hsae_lens.models.tokenizing import sample_tokens


def test_a_dashboard_counts_what_the_sae_encodes() -> None:
    model = open_model("smollm2-135m", dtype="float32")
    sae = load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
    tokens, _ = sample_tokens(None, model.tokenizer, 64, 256)
    one, silent = latent_dashboards(sae, model, tokens, [3307, _silent(sae, model, tokens)])
    acts = hook_activations(model, tokens, "blocks.15.hook_resid_post")
    with torch.no_grad():
        values = sae.encode(acts)[..., 3307]
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, :4] = False
    keep &= tokens != model.tokenizer.bos_token_id
    keep &= acts.norm(dim=-1) <= 870
    values = values * keep
    assert one.density == pytest.approx(((values > 0).sum() / keep.sum()).item())
    assert sum(map(sum, one.histogram)) == int((values > 0).sum())
    strongest = one.contexts[0]
    assert max(strongest.values) == pytest.approx(values.max().item(), rel=1e-4)
    assert one.promoted[0][0] == " are"
    assert one.suppressed[0][1] < 0 < one.promoted[-1][1]
    assert silent.contexts == []
    assert silent.density == 0
    with pytest.raises(ValueError, match=r"numbers in 0..4607"):
        latent_dashboards(sae, model, tokens, [4608])


@torch.no_grad()
def _silent(sae: Any, model: Any, tokens: torch.Tensor) -> int:
    acts = sae.encode(hook_activations(model, tokens, "blocks.15.hook_resid_post"))
    return int((acts == 0).flatten(0, 1).all(0).nonzero()[0])
