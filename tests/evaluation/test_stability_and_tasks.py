"""Whether the order means something, and which behaviours survive at k latents."""

from __future__ import annotations

import copy
import itertools
import math
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
from hsae_lens.evaluation.tasks.behaviour import evaluate_tasks
from hsae_lens.evaluation.tasks.pairs import Pair, tokenize_pairs
from hsae_lens.evaluation.tasks.templates import TASKS, make_task


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


# --- tasks ---


@pytest.mark.parametrize("name", TASKS)
def test_pairs_differ_only_in_what_decides(name: str, smollm: Any) -> None:
    task = make_task(name, smollm.tokenizer, 48)
    assert task.clean.shape == task.corrupt.shape
    assert len(task.clean) == 48
    assert (task.clean[:, 0] == smollm.tokenizer.bos_token_id).all()
    assert (task.right != task.wrong).all()
    assert not (task.clean == task.corrupt).all(1).any()
    assert len({tuple(row) for row in task.clean.tolist()}) == 48
    again = make_task(name, smollm.tokenizer, 48)
    assert torch.equal(task.clean, again.clean)


def test_the_real_model_does_them_and_latents_keep_them(smollm: Any) -> None:
    sae = load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
    names = ["agreement", "pronoun"]
    table = evaluate_tasks(sae, smollm, names, [1, 128], n=16, progress=False)
    assert (table["model_accuracy"] > 0.9).all()
    by = table.set_index(["task", "k"])
    for name in names:
        assert by.loc[(name, 128), "retention"] > 0.8
        assert by.loc[(name, 1), "logit_retention"] < by.loc[(name, 128), "logit_retention"]


def test_a_model_at_chance_retains_nothing(tiny_gemma2: Any, tmp_path: Path) -> None:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    pairs = [Pair("a b", "b a", "a", "b"), Pair("b a", "a b", "b", "a")] * 8
    task = tokenize_pairs("mine", pairs, tiny_gemma2.tokenizer)
    table = evaluate_tasks(sae, tiny_gemma2, [task], [8], progress=False)
    assert table["model_accuracy"].iloc[0] == 0.5
    assert math.isnan(table["retention"].iloc[0])
    assert math.isnan(table["logit_retention"].iloc[0])


def test_tasks_go_through_the_model_in_batches(tiny_gemma2: Any, tmp_path: Path) -> None:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    words = [chr(97 + n) for n in range(12)]
    pairs = [Pair(f"{a} {b}", f"{b} {a}", a, b) for a, b in itertools.permutations(words, 2)]
    task = tokenize_pairs("mine", pairs, tiny_gemma2.tokenizer, 40)
    sizes: list[int] = []
    handle = tiny_gemma2.unembed.register_forward_hook(lambda _, x, out: sizes.append(len(out)))
    try:
        whole = evaluate_tasks(
            sae, tiny_gemma2, [task], [1, 8], batch_size=len(task), progress=False
        )
        assert set(sizes) == {40}
        sizes.clear()
        parts = evaluate_tasks(sae, tiny_gemma2, [task], [1, 8], progress=False)
        assert max(sizes) == 16
    finally:
        handle.remove()
    assert list(parts.columns) == list(whole.columns)
    for column in whole.columns.drop(["task", "retention", "logit_retention"]):
        assert parts[column].to_numpy() == pytest.approx(whole[column].to_numpy(), abs=1e-5)


def test_tasks_that_do_not_fit_are_said(smollm: Any) -> None:
    with pytest.raises(ValueError, match="Did you mean 'greater_than'"):
        make_task("greater", smollm.tokenizer)
    long = [Pair("a", "b", " antidisestablishmentarianism", " b")]
    with pytest.raises(ValueError, match="is several tokens in this tokenizer"):
        tokenize_pairs("mine", long, smollm.tokenizer)
    uneven = [Pair("a b c", "a", " b", " c")]
    with pytest.raises(ValueError, match="are of different length"):
        tokenize_pairs("mine", uneven, smollm.tokenizer)
    with pytest.raises(ValueError, match="10000 are needed"):
        make_task("pronoun", smollm.tokenizer, 10_000)
