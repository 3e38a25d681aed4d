"""The frontier's arithmetic and its doors: models, activations, documents, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import training_sae
from sae_lens import SAE

from hsae_lens import HierarchicalTopKSAE
from hsae_lens.evaluation import evaluate_activations, evaluate_budgets
from hsae_lens.models import hook_activations

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def sae(tmp_path: Path) -> HierarchicalTopKSAE:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = HOOK
    return sae


@pytest.fixture
def acts(tiny_gemma2: Any, tiny_tokens: torch.Tensor) -> torch.Tensor:
    return hook_activations(tiny_gemma2, tiny_tokens[:12], HOOK)[:, 1:].reshape(-1, 32).detach()


def test_activations_alone_give_the_model_s_figures(
    sae: Any, acts: torch.Tensor, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    budgets = [1, 3, 8]
    tokens = tiny_tokens[:12]
    with_model = evaluate_budgets(
        sae, tiny_gemma2, tokens, budgets, seqpos_slice=(1, None), cross_entropy=False
    )
    # BOS separates documents and is left out where tokens are known.
    kept = acts[~torch.isin(tokens[:, 1:].reshape(-1), torch.tensor([0, 1, 2]))]
    alone = evaluate_activations(sae, kept, budgets, batch_size=37)
    assert list(alone.columns) == list(with_model.columns)
    torch.testing.assert_close(
        torch.tensor(alone.to_numpy()), torch.tensor(with_model.to_numpy()), rtol=1e-5, atol=1e-6
    )


def test_every_column_is_what_it_says(sae: Any, acts: torch.Tensor) -> None:
    table = evaluate_activations(sae, acts, list(range(1, 9))).set_index("k")
    variance = (acts.double() - acts.double().mean(0)).square().sum()
    for k in (1, 5, 8):
        with sae.budget(k):
            code, x_hat = sae.encode(acts), sae(acts)
        row, error = table.loc[k], (acts - x_hat).double().square().sum()
        assert row["l0"] == pytest.approx((code != 0).sum(-1).double().mean().item())
        assert row["explained_variance"] == pytest.approx(1 - (error / variance).item(), abs=1e-5)
        assert row["fvu"] == pytest.approx(1 - row["explained_variance"])
        assert row["dead"] == pytest.approx((code == 0).all(0).double().mean().item())
        share = (code != 0).double().mean(0)
        assert row["dense"] == pytest.approx((share > 0.1).double().mean().item())
    nothing = (acts - sae.b_dec).double().square().sum()
    gained = table["adds"].cumsum() + 1 - (nothing / variance).item()
    assert gained.to_numpy() == pytest.approx(table["explained_variance"].to_numpy(), abs=1e-5)


def test_standard_errors_grow_with_what_documents_share(sae: Any, acts: torch.Tensor) -> None:
    each = evaluate_activations(sae, acts, [8], bootstrap=300)
    again = evaluate_activations(sae, acts, [8], bootstrap=300, batch_size=50)
    assert each["explained_variance_se"].iloc[0] == pytest.approx(
        again["explained_variance_se"].iloc[0]
    ), "the batch size does not matter"
    tripled = acts.repeat_interleave(3, 0)
    documents = torch.arange(len(acts)).repeat_interleave(3)
    same = evaluate_activations(sae, tripled, [8], bootstrap=300, documents=documents)
    ignored = evaluate_activations(sae, tripled, [8], bootstrap=300)
    column = "explained_variance_se"
    assert same[column].iloc[0] == pytest.approx(each[column].iloc[0], rel=1e-3)
    assert ignored[column].iloc[0] < 0.75 * same[column].iloc[0]


def test_standard_errors_of_the_model_s_behaviour(
    sae: Any, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    table = evaluate_budgets(
        sae, tiny_gemma2, tiny_tokens[:12], [2], seqpos_slice=(1, None), bootstrap=50
    )
    assert table["ce_score_se"].iloc[0] > 0
    assert table["explained_variance_se"].iloc[0] > 0
    with pytest.raises(ValueError, match="9 groups of tokens are too few"):
        evaluate_budgets(sae, tiny_gemma2, tiny_tokens[:9], [2], bootstrap=50, cross_entropy=False)


def test_long_activations_are_left_out(sae: Any, acts: torch.Tensor) -> None:
    outlier = torch.cat([acts, 1000 * acts[:1]])
    limit = 10 * acts.norm(dim=-1).max().item()
    assert evaluate_activations(sae, outlier, max_norm=limit).equals(
        evaluate_activations(sae, acts)
    )
    sae.cfg.metadata.max_norm = limit
    assert evaluate_activations(sae, outlier).equals(evaluate_activations(sae, acts))
    with pytest.raises(ValueError, match="No token is left to judge"):
        evaluate_activations(sae, acts, max_norm=1e-6)


def test_activations_that_would_mislead(sae: Any, acts: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"reads width d_in=32, but activations has 31"):
        evaluate_activations(sae, acts[:, :31])
    poisoned = acts.clone()
    poisoned[3, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="activations holds NaN"):
        evaluate_activations(sae, poisoned)
