"""Values refitted to the activation: against NumPy's least squares, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig, OrderedCode
from hsae_lens.objective import refit, refit_values


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
@pytest.mark.parametrize("k", [1, 5])
def test_they_are_those_of_least_squares(
    shape: tuple[int, ...], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "CHUNK_ELEMENTS", 2 * k * 16)  # two tokens at a time
    monkeypatch.setattr(refit, "RIDGE", 0.0)
    torch.manual_seed(0)
    W_dec, x = torch.randn(32, 16).double(), torch.randn(*shape, 16).double()
    code = OrderedCode.from_pre_activations(torch.randn(*shape, 32).double(), k)
    values = refit_values(code, W_dec, x)
    for found, latents, target in zip(
        values.view(-1, k), code.indices.view(-1, k), x.view(-1, 16), strict=True
    ):
        best = np.linalg.lstsq(W_dec[latents].T.numpy(), target.numpy(), rcond=None)[0]
        np.testing.assert_allclose(found.numpy(), best, rtol=1e-9)


def test_latents_that_are_not_used_stay_out() -> None:
    code = OrderedCode(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[1, 0], [2, 1]]))
    values = refit_values(code, torch.eye(3), torch.tensor([[5.0, 3.0, 1.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(values, torch.tensor([[3.0, 0.0], [0.0, 0.0]]), rtol=1e-3, atol=0)


def test_latents_that_coincide_share() -> None:
    code = OrderedCode(torch.ones(1, 2), torch.tensor([[0, 1]]))
    values = refit_values(code, torch.ones(2, 4), torch.full((1, 4), 3.0))
    torch.testing.assert_close(values, torch.full((1, 2), 1.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("rescale", [False, True])
def test_an_sae_comes_nearer_with_the_same_latents(rescale: bool) -> None:
    torch.manual_seed(0)
    cfg = HierarchicalTopKSAEConfig(d_in=16, d_sae=32, k=6, rescale_acts_by_decoder_norm=rescale)
    sae = HierarchicalTopKSAE(cfg)
    sae.W_dec.data *= torch.rand(32, 1) + 0.5
    x = torch.randn(20, 16)
    for k in (1, 6):
        sae.budget = k
        code = sae.refit(x)
        assert torch.equal(code.indices, sae.encode_ordered(x).indices[:, :k])
        errors = [(sae.decode(acts) - x).square().sum(-1)
                  for acts in (code.to_dense(32), sae.encode(x))]  # fmt: skip
        assert (errors[0] <= errors[1] * (1 + 1e-3)).all()
        assert errors[0].sum() < errors[1].sum()


def test_normalised_activations_are_refused() -> None:
    cfg = HierarchicalTopKSAEConfig(d_in=16, d_sae=32, k=6, normalize_activations="layer_norm")
    with pytest.raises(ValueError, match=r"normalises them \(layer_norm\)"):
        HierarchicalTopKSAE(cfg).refit(torch.randn(3, 16))
