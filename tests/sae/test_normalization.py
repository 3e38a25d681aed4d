"""A call's norms: kept for its own decodes, and for no copy's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from helpers import training_sae
from helpers.variants import (
    VARIANTS,
    activations_for,
    assert_near,
    inference_variant,
    training_variant,
)
from sae_lens.saes.sae import SAEConfig, TrainStepInput

from hsae_lens import HierarchicalTopKTrainingSAEConfig
from hsae_lens.sae.normalization import NORMALIZATIONS


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "norm" in name])
def test_a_calls_norms_serve_any_number_of_decodes_by_budget_and_one_by_decode(
    variant: str,
) -> None:
    sae = inference_variant(variant)
    x = activations_for(sae, 3, 5)
    code = sae.encode_ordered(x)
    first = sae.decode_budgets(code, [2, 8])
    assert torch.equal(first, sae.decode_budgets(code, [2, 8])), "it can be called again"
    assert_near(first[1], sae(x))
    with pytest.raises(RuntimeError, match="Call encode_ordered again"):
        sae.decode_budgets(code, [2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_encode_does_not_change_reconstructions_asked_for_before(variant: str) -> None:
    sae = inference_variant(variant)
    x = activations_for(sae, 3, 5)
    code = sae.encode_ordered(x)
    want = sae.decode_budgets(code, [2, 8])
    each = sae.each_budget(code, [2, 8])
    sae.encode(10 * x + 3)
    assert torch.equal(torch.stack(list(each)), want)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_without_norm_or_spread_are_reconstructed_like_any(variant: str) -> None:
    sae = inference_variant(variant)
    sae.b_dec.data.zero_()
    x = activations_for(sae, 4)
    want = sae(x)
    x[1], x[2] = 0, 3.7
    x.requires_grad_()
    got = sae(x)
    torch.testing.assert_close(got[[0, 3]], want[[0, 3]])
    assert torch.isfinite(got).all()
    if "norm" in variant:
        torch.testing.assert_close(got[1], x[1])
    got.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    for p in sae.parameters():
        assert torch.isfinite(p.grad).all()


def deep_copy(sae: Any) -> Any:
    return copy.deepcopy(sae)


def pickled(sae: Any) -> Any:
    return pickle.loads(pickle.dumps(sae))


@pytest.mark.parametrize("make", [inference_variant, training_variant])
@pytest.mark.parametrize("copied", [deep_copy, pickled])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_works_alone(variant: str, copied: Any, make: Callable[[str], Any]) -> None:
    sae = make(variant)
    x, other = activations_for(sae, 3).requires_grad_(), 5 * activations_for(sae, 3, seed=2) + 2
    unused = copied(sae)
    want, want_other = unused(x), unused(other)
    torch.testing.assert_close(sae(x), want)
    acts = sae.encode(x)  # the next copy is made in the middle of a call
    twin = copied(sae)
    torch.testing.assert_close(twin(other), want_other)
    twin.encode(other)
    torch.testing.assert_close(sae.decode(acts), want)  # and that call is not disturbed
    with torch.no_grad():
        sae.W_dec.zero_()
    torch.testing.assert_close(twin(other), want_other)
    assert twin.cfg == sae.cfg
    assert twin.cfg is not sae.cfg
    for name in ("budget", "budgets"):
        assert getattr(twin, name, None) == getattr(sae, name, None)


def test_a_training_copy_goes_on_from_where_the_original_was() -> None:
    sae = training_sae(normalize_activations="layer_norm")
    sae.checks_activations = False  # as a trainer arranges it that checks by itself
    twin = copy.deepcopy(sae)
    assert twin.checks_activations
    x = torch.randn(20, 24)
    for each in (sae, twin):
        loss = each.training_forward_pass(TrainStepInput(x, {}, None, 1, False)).loss
        loss.backward()
    for p, q in zip(sae.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
        assert p.grad is not q.grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_before_encoding_says_so(variant: str) -> None:
    sae = inference_variant(variant)
    acts = torch.zeros(2, 96, dtype=sae.dtype)
    if "norm" in variant:
        with pytest.raises(RuntimeError, match="needs the norms of the latest encode"):
            sae.decode(acts)
    elif sae.hook_z_reshaping_mode:
        with pytest.raises(RuntimeError, match="learns the width of a head from encode"):
            sae.decode(acts)
    else:
        torch.testing.assert_close(sae.decode(acts), sae.b_dec.expand(2, 24))


def test_the_table_has_saelens_modes_and_says_which_of_them_training_folds() -> None:
    modes = get_args(get_type_hints(SAEConfig)["normalize_activations"])
    assert set(modes) <= set(NORMALIZATIONS)
    for name in NORMALIZATIONS:
        HierarchicalTopKTrainingSAEConfig(d_in=24, d_sae=96, k=8, normalize_activations=name)
    folded = [name for name, mode in NORMALIZATIONS.items() if mode.folded_at_the_end]
    assert folded == ["expected_average_only_in", "covariance_whitening"]
    keep = [name for name, mode in NORMALIZATIONS.items() if mode.kept]
    assert keep == ["layer_norm", "constant_norm_rescale"]
