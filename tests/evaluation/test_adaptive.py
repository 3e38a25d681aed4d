"""Every budget at once, and budgets that differ from token to token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from helpers.variants import activations_for, assert_near
from sae_lens import SAE

from hsae_lens.evaluation import (
    adaptive_frontier,
    evaluate_activations,
    explained_variance_curve,
)
from hsae_lens.evaluation.frontier.adaptive import reach_error, spend_mean
from hsae_lens.evaluation.frontier.errors import token_errors
from hsae_lens.evaluation.stability import contribution_stability


def test_the_curve_is_the_frontier_at_every_budget(sae: Any, acts: torch.Tensor) -> None:
    curve = explained_variance_curve(sae, acts, progress=False).set_index("k")
    table = evaluate_activations(sae, acts, list(range(1, 9)), progress=False).set_index("k")
    assert list(curve.index) == list(range(9))
    for column in ("explained_variance", "adds"):
        assert curve[column][1:].to_numpy() == pytest.approx(table[column].to_numpy(), abs=1e-5)


@torch.no_grad()
def test_errors_of_tokens_are_those_of_the_sae_at_each_budget(any_sae: Any) -> None:
    x = activations_for(any_sae, 60)
    errors, values = token_errors(any_sae, x.flatten(1), progress=False)
    for k in (1, 5, 8):
        with any_sae.using_budget(k):
            code = any_sae.encode(x)
            want = (any_sae.decode(code) - x).flatten(1).float().square().sum(-1)
        rounded = torch.bfloat16 if any_sae.dtype == torch.bfloat16 else torch.float32
        assert_near(errors[:, k].to(rounded), want.to(rounded))
    largest = code.sort(-1, descending=True).values[:, :8].float()
    torch.testing.assert_close(values, largest)


def test_adaptive_budgets(sae: Any, acts: torch.Tensor) -> None:
    table = adaptive_frontier(sae, acts, [2, 5.5], [0.5], progress=False)
    assert list(table["rule"]) == ["mean", "mean", "error"]
    assert table["l0"][:2].to_numpy() == pytest.approx([2, 5.5], rel=0.02)
    errors, values = token_errors(sae, acts, progress=False)
    cuts = spend_mean(values, 2)
    # By hand: keep what is above one threshold, decode, compare.
    threshold = values.flatten().sort(descending=True).values[2 * len(acts) - 1]
    dense = sae.encode(acts)
    x_hat = sae.decode(torch.where(dense >= threshold, dense, 0))
    by_hand = (x_hat - acts).square().sum(-1)
    torch.testing.assert_close(errors.gather(1, cuts[:, None])[:, 0], by_hand, rtol=1e-4, atol=1e-4)
    variance = (acts - acts.mean(0)).square().sum(-1).mean()
    assert table["explained_variance"][0] == pytest.approx(
        1 - (by_hand.mean() / variance).item(), abs=1e-4
    )
    curve = explained_variance_curve(sae, acts, progress=False)["explained_variance"]
    assert table["fixed"][1] == pytest.approx((curve[5] + curve[6]) / 2, abs=5e-3)


def test_every_rule_counts_active_latents(tmp_path: Path, acts: torch.Tensor) -> None:
    training_sae(d_in=32).save_inference_model(tmp_path / "s")
    sae = SAE.load_from_disk(tmp_path / "s")
    with torch.no_grad():
        sae.b_enc.sub_(sae.encode_ordered(acts).values[:, 3].median())
    active = (sae.encode(acts) > 0).sum(-1)
    assert active.min() < 3, "many tokens have fewer than K active latents"
    assert active.max() > 4
    table = adaptive_frontier(sae, acts, [1], [1e-9], progress=False)
    exact = table[table["rule"] == "error"].iloc[0]  # out of reach: every token takes all it has
    assert exact["l0"] == pytest.approx(active.double().mean().item())
    assert exact["l0_std"] == pytest.approx(active.double().std().item())
    frontier = evaluate_activations(sae, acts, [1, 8], progress=False).set_index("k")
    assert exact["l0"] == pytest.approx(frontier.loc[8, "l0"])
    assert exact["explained_variance"] == pytest.approx(frontier.loc[8, "explained_variance"])
    assert exact["fixed"] == pytest.approx(frontier.loc[8, "explained_variance"])


def test_errors_at_hand_are_not_made_again(
    sae: Any, acts: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = torch.arange(len(acts)) % 2
    ask = (
        lambda **given: explained_variance_curve(sae, acts, progress=False, **given),
        lambda **given: adaptive_frontier(sae, acts, progress=False, **given),
        lambda **given: contribution_stability(sae, acts, documents, **given),
    )
    want = [function() for function in ask]
    errors = token_errors(sae, acts, progress=False)
    monkeypatch.setattr(type(sae), "each_budget", None)  # what decodes
    for function, table in zip(ask, want, strict=True):
        assert function(errors=errors).equals(table)


def test_an_error_target_takes_no_latent_too_many() -> None:
    errors = torch.tensor([[9.0, 4, 1], [9, 8, 7], [1, 1, 1], [9, 2, 3]])
    assert reach_error(errors, 2).tolist() == [2, 2, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean_budgets": [0]}, "above 0 and at most K=8, got 0"),
        ({"mean_budgets": [9]}, "above 0 and at most K=8, got 9"),
        ({"error_targets": [0]}, "An error target must be above 0"),
    ],
)
def test_adaptive_budgets_out_of_bounds(settings: Any, message: str, sae: Any, acts: Any) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive_frontier(sae, acts, progress=False, **settings)
    with pytest.raises(ValueError, match="no activations"):
        adaptive_frontier(sae, acts[:0], progress=False)
