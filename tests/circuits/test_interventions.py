"""Hooks for the latents of an attached SAE; tests/sae/test_attached.py runs them on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.variants import VARIANTS, activations_for, assert_near, inference_variant

from hsae_lens.circuits import ablate, keep, steer


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
