"""The frontier of an SAE from SAELens' runner, beside SAELens' own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_runs import runner_config, sae_config
from sae_lens import (
    SAE,
    ActivationsStore,
    run_evals,
)
from sae_lens.evals import get_eval_everything_config
from sae_lens.training.activation_scaler import ActivationScaler

from hsae_lens import HierarchicalTopKSAE
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner


@pytest.fixture
def trained(tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any) -> HierarchicalTopKSAE:
    HierarchicalTopKTrainingRunner(
        runner_config(tmp_path, sae_config(b_dec_init="mean"), exclude_special_tokens=True),
        override_dataset=tiny_dataset,
        override_model=tiny_gemma2,
    ).run()
    return SAE.load_from_disk(tmp_path / "out")


def test_the_frontier_equals_saelens_evaluation(
    trained: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor, tiny_dataset: Any
) -> None:
    tokens = tiny_tokens[:8]
    table = evaluate_budgets(trained, tiny_gemma2, tokens, [1, 2, 8], batch_size=3, progress=False)
    for row in table.to_dict("records"):
        with trained.using_budget(int(row["k"])):
            store = ActivationsStore.from_sae(
                tiny_gemma2, trained, tiny_dataset, context_size=32, store_batch_size_prompts=8
            )
            metrics, _ = run_evals(
                trained,
                store,
                tiny_gemma2,
                ActivationScaler(),
                get_eval_everything_config(8, 1, 1),
            )
            # SAELens judges the second batch's variance: give it the same tokens instead.
            store = ActivationsStore.from_sae(
                tiny_gemma2, trained, tiny_dataset, context_size=32, store_batch_size_prompts=8
            )
            config = get_eval_everything_config(8, 1, 1)
            config.compute_ce_loss = config.compute_kl = False
            variance, _ = run_evals(trained, store, tiny_gemma2, ActivationScaler(), config)
        ce = metrics["model_performance_preservation"]
        quality = variance["reconstruction_quality"]
        assert row["ce_with_sae"] == pytest.approx(ce["ce_loss_with_sae"], rel=1e-5)
        assert row["ce_clean"] == pytest.approx(ce["ce_loss_without_sae"], rel=1e-5)
        assert row["ce_ablated"] == pytest.approx(ce["ce_loss_with_ablation"], rel=1e-5)
        # A random model hardly notices ablation: the score divides by a small difference.
        assert row["ce_score"] == pytest.approx(ce["ce_loss_score"], rel=2e-2)
        assert row["explained_variance"] == pytest.approx(quality["explained_variance"], rel=1e-4)
        assert row["mse"] == pytest.approx(quality["mse"], rel=1e-4)
        assert row["cosine"] == pytest.approx(quality["cossim"], rel=1e-4)
        assert row["l2_ratio"] == pytest.approx(variance["shrinkage"]["l2_ratio"], rel=1e-4)
        assert row["l0"] == pytest.approx(variance["sparsity"]["l0"], rel=1e-6)
        kl = metrics["model_behavior_preservation"]["kl_div_with_sae"]
        assert row["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_the_frontier_of_a_stock_view_is_the_same(
    trained: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    ours = evaluate_budgets(trained, tiny_gemma2, tiny_tokens[:4], progress=False)
    stock = evaluate_budgets(trained.at_k(8), tiny_gemma2, tiny_tokens[:4], progress=False)
    assert list(ours["k"]) == [1, 2, 4, 8]
    torch.testing.assert_close(
        torch.tensor(ours.to_numpy()), torch.tensor(stock.to_numpy()), rtol=1e-4, atol=1e-4
    )


def test_the_frontier_refuses_what_would_mislead(
    trained: HierarchicalTopKSAE, tiny_gemma2: Any, tiny_tokens: torch.Tensor
) -> None:
    tokens = tiny_tokens[:2]
    with pytest.raises(ValueError, match="outside 1..k=8"):
        evaluate_budgets(trained, tiny_gemma2, tokens, [9], progress=False)
    trained._use_error_term = True
    with pytest.raises(ValueError, match="use_error_term off"):
        evaluate_budgets(trained, tiny_gemma2, tokens, progress=False)
    trained._use_error_term = False
    trained.cfg.metadata.hook_name = "blocks.1.hook_resid_pots"
    with pytest.raises(ValueError, match="no hook 'blocks.1.hook_resid_pots'"):
        evaluate_budgets(trained, tiny_gemma2, tokens, progress=False)
