"""Whether the order of latents means something."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from sae_lens import SAE
from sae_lens.synthetic import mean_correlation_coefficient

from hsae_lens import HierarchicalTopKSAE, load_pretrained
from hsae_lens.evaluation.stability import (
    contribution_stability,
    noise_stability,
    paraphrase_stability,
    seed_stability,
)


@pytest.fixture
def sae(tmp_path: Path) -> HierarchicalTopKSAE:
    training_sae().save_inference_model(tmp_path / "sae")
    return SAE.load_from_disk(tmp_path / "sae")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(60, 24, generator=torch.Generator().manual_seed(0))


def test_agreement_under_noise(sae: HierarchicalTopKSAE, x: torch.Tensor) -> None:
    same = noise_stability(sae, x, noise=0)
    assert list(same["k"]) == [1, 2, 4, 8]
    assert (same["agreement"] == 1).all()
    small, large = noise_stability(sae, x, noise=0.05), noise_stability(sae, x, noise=1.0)
    assert (small["agreement"] > large["agreement"]).all()
    assert (large["agreement"] > large["shuffled"]).all()
    by_hand = [
        len({*a} & {*b}) / 4
        for a, b in zip(
            sae.encode_ordered(x).prefix(4).indices.tolist(),
            sae.encode_ordered(x + 1).prefix(4).indices.tolist(),
            strict=True,
        )
    ]
    between = paraphrase_stability(sae, x, x + 1, [4])
    assert between["agreement"].iloc[0] == pytest.approx(sum(by_hand) / len(by_hand))


def test_seeds_are_matched_latent_by_latent(sae: Any, x: torch.Tensor, tmp_path: Path) -> None:
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    other = SAE.load_from_disk(tmp_path / "sae")
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[order])
        other.W_enc.copy_(sae.W_enc[:, order])
        other.b_enc.copy_(sae.b_enc[order])
    mcc, chance, table = seed_stability(sae, other, x)
    assert mcc == pytest.approx(1)
    assert chance < 0.8
    assert (table["agreement"] == 1).all()
    with torch.no_grad():
        other.W_dec.normal_()
    mcc, chance, _ = seed_stability(sae, other, x)
    assert mcc == pytest.approx(chance, abs=0.05)
    training_sae(d_sae=64).save_inference_model(tmp_path / "small")
    with pytest.raises(ValueError, match="only equal ones can be matched"):
        seed_stability(sae, SAE.load_from_disk(tmp_path / "small"), x)


def test_a_latent_turned_round_is_the_same_direction(sae: Any, x: torch.Tensor) -> None:
    """PW-MCC (arXiv 2505.20254, SAELens) takes absolute cosines."""
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_dec[::2] *= -1
    mcc, chance, _ = seed_stability(sae, other, x)
    assert mcc == pytest.approx(1)
    random = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(0))
    assert chance == pytest.approx(
        mean_correlation_coefficient(sae.W_dec.detach(), random), abs=1e-6
    )


def test_codes_of_different_k_agree_as_far_as_both_go(
    sae: Any, x: torch.Tensor, tmp_path: Path
) -> None:
    training_sae(k=16).save_inference_model(tmp_path / "longer")  # the same weights
    longer = SAE.load_from_disk(tmp_path / "longer")
    for first, second in ((sae, longer), (longer, sae)):
        table = seed_stability(first, second, x)[2]
        assert list(table["k"]) == [1, 2, 4, 8]
        assert (table["agreement"] == 1).all()
        with pytest.raises(ValueError, match=r"budgets \[16\] are outside 1..k=8"):
            seed_stability(first, second, x, [16])


def test_worth_is_the_same_in_copies_of_a_text(sae: Any, x: torch.Tensor) -> None:
    twice, documents = x.repeat(2, 1), torch.arange(2).repeat_interleave(60)
    row = contribution_stability(sae, twice, documents).iloc[0]
    assert row["rank_correlation"] == pytest.approx(1)
    assert abs(row["shuffled"]) < 0.5
    assert 0 <= row["falls"] <= 1
    with pytest.raises(ValueError, match="latents are active in both halves"):
        contribution_stability(sae, x, torch.zeros(60, dtype=torch.int64))
    sampled = contribution_stability(sae, twice, 4 * documents + 2)  # numbers with gaps
    assert sampled["latents"][0] == row["latents"]


def test_the_shipped_sae_s_order_means_something() -> None:
    sae = load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
    x = sae.b_dec.detach() + 30 * torch.randn(40, sae.cfg.d_sae).relu().topk(3).values @ torch.ones(
        3, 1
    ) * torch.nn.functional.normalize(sae.W_dec[:40].detach(), dim=-1)
    table = noise_stability(sae, x, 0.1, [1, 8])
    assert table["agreement"].iloc[0] > 0.9
    assert table["shuffled"].iloc[0] < 0.1
