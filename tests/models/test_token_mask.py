"""Which tokens count, and what is not a number among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.variants import inference_variant

from hsae_lens.models import TokenMask
from hsae_lens.models.token_mask import masked_batches

HOOK = "blocks.0.hook_resid_pre"
ODD = 400  # a token id


@pytest.fixture
def odd_model(tiny_gemma2: Any) -> Iterator[Any]:
    """The model with one token whose embedding is NaN."""
    (embedding,) = (p for name, p in tiny_gemma2.named_parameters() if "embed" in name)
    before = embedding[ODD].clone()
    with torch.no_grad():
        embedding[ODD] = torch.nan
        yield tiny_gemma2
        embedding[ODD] = before


def test_positions_special_tokens_and_long_activations_are_left_out() -> None:
    mask = TokenMask(torch.tensor([0, 7]), slice(1, 4), max_norm=10)
    tokens = torch.tensor([[5, 5, 7, 5, 5]])
    x = torch.ones(1, 5, 4)
    assert mask(tokens, x).tolist() == [[False, True, False, True, False]]
    x[0, 3] *= 100
    assert mask(tokens, x).tolist() == [[False, True, False, False, False]]
    assert replace(mask, max_norm=1000)(tokens, x).tolist() == [[False, True, False, True, False]]


def test_an_saes_own_mask_is_in_its_metadata(tiny_gemma2: Any) -> None:
    sae = inference_variant("plain", hook_name=HOOK, d_in=32)
    sae.cfg.metadata.seqpos_slice, sae.cfg.metadata.max_norm = [2, None], 5.0
    mask = TokenMask.from_sae(sae, tiny_gemma2)
    assert (mask.positions, mask.max_norm) == (slice(2, None), 5.0)
    assert tiny_gemma2.tokenizer.bos_token_id in mask.special.tolist()
    everything = TokenMask.from_model(tiny_gemma2)
    assert (everything.positions, everything.max_norm) == (slice(None), float("inf"))


def test_what_is_not_a_number_is_said_where_it_counts(odd_model: Any) -> None:
    tokens = torch.tensor([[2, 10, 11, 12], [2, 10, 11, ODD]])
    with pytest.raises(FloatingPointError, match=f"activations at {HOOK} are not finite"):
        list(masked_batches(odd_model, tokens, HOOK, TokenMask.from_model(odd_model), 2))
    others = TokenMask.from_model(odd_model, slice(3))
    (batch,) = masked_batches(odd_model, tokens, HOOK, others, 2)
    assert batch.keep.tolist() == [[False, True, True, False]] * 2
    assert torch.equal(batch.kept, batch.x[batch.keep])
