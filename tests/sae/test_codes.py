"""Any SAE as an ordered code, and what it makes of the code's first latents."""

from __future__ import annotations

import pytest
import torch
from helpers.variants import VARIANTS, activations_for, assert_near, inference_variant

from hsae_lens.sae.codes import decode_first, each_reconstruction, ordered_code


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stock_sae_has_the_same_codes_and_reconstructions(variant: str) -> None:
    """A stock TopK SAE of k = 8, cut to each budget, is the hierarchical one at that budget."""
    sae = inference_variant(variant)
    stock, x = sae.at_k(8), activations_for(sae, 3, 5)
    budgets = [0, 1, 3, 8]
    pairs = zip(
        each_reconstruction(sae, x, torch.ones(x.shape[:2], dtype=torch.bool), budgets),
        each_reconstruction(stock, x, torch.ones(x.shape[:2], dtype=torch.bool), budgets),
        strict=True,
    )
    for (j, code, x_hat), (same, stocks, x_stock) in pairs:
        assert j == same
        assert code.k == stocks.k == max(1, j)
        assert torch.equal(code.to_dense(96), stocks.to_dense(96))
        assert_near(x_hat, x_stock)
        if j:
            with sae.using_budget(j):
                assert_near(x_hat, sae(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_decode_of_a_code_is_that_of_its_first_latents(variant: str) -> None:
    ours = inference_variant(variant)
    x = activations_for(ours, 3, 5)
    for sae in (ours, ours.at_k(8)):
        for k, j in ((8, 0), (8, 3), (5, 5)):
            x_hat = decode_first(sae, ordered_code(sae, x, [k])[0], j)
            ours.encode(x)
            acts = ordered_code(ours, x, [max(1, j)])[0].to_dense(96) if j else ours.encode(x) * 0
            assert_near(x_hat, ours.decode(acts))
        with pytest.raises(ValueError, match=r"outside 1\.\.8|in 1\.\.d_sae=96"):
            ordered_code(sae, x, [97])
