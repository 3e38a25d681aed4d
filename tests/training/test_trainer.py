"""Our training step beside SAELens', its logs, and activations that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_runs import runner_config, sae_config
from sae_lens import (
    LanguageModelSAETrainingRunner,
    SAETrainer,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.training.activation_scaler import ActivationScaler

from hsae_lens.training.runner import HierarchicalTopKTrainingRunner


def test_both_trainers_do_the_same(tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any) -> None:
    trained = []
    for runner in (LanguageModelSAETrainingRunner, HierarchicalTopKTrainingRunner):
        torch.manual_seed(0)
        cfg = runner_config(tmp_path, n_checkpoints=1, dead_feature_window=3)
        trained.append(runner(cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2).run())
    for (name, a), b in zip(trained[0].named_parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert trained[0].cfg.metadata.l0 == trained[1].cfg.metadata.l0


@pytest.mark.parametrize("sparse", [True, False])
def test_saelens_logs_and_evaluates_it_during_training(
    sparse: bool, make_runner: Callable[..., Any]
) -> None:
    runner = make_runner(sae_config(use_sparse_activations=sparse))
    runner._set_sae_metadata()  # as run() begins
    store = runner.activations_store
    trainer = SAETrainer(runner.cfg.to_sae_trainer_config(), runner.sae, store)
    x = next(store)
    trainer._is_logging_step = lambda: True
    logged = trainer.build_train_step_log_dict(trainer.step(x), trainer.n_training_samples)
    assert logged["metrics/l0"] <= 8
    assert logged["losses/nested_loss"] > 0
    for j in (1, 2, 4, 8):
        assert logged[f"metrics/mse_at_{j}"] > 0
    assert logged["metrics/explained_variance_at_8"] == pytest.approx(
        logged["metrics/explained_variance"], rel=1e-4
    )
    evaluated = runner.evaluator(runner.sae, store, ActivationScaler())
    assert "ce_loss_score" in evaluated["model_performance_preservation"]
    assert set(runner.sae.log_histograms()) == {"weights/W_dec_norms"}


@pytest.mark.parametrize(
    ("sae", "says"),
    [
        (sae_config(), r"Step \d+: .*% of the activations"),
        (TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8), "became NaN .* checkpoints are intact"),
    ],
)
def test_nan_activations_stop_training_with_the_checkpoint_intact(
    sae: Any, says: str, tmp_path: Path, make_runner: Callable[..., Any]
) -> None:
    runner = make_runner(sae, n_checkpoints=3)
    plain = runner.activations_store.get_activations
    calls = 0

    def poisoned(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return plain(tokens) * (math.nan if calls > 9 else 1)

    runner.activations_store.get_activations = poisoned
    with pytest.raises(FloatingPointError, match=says):
        runner.run()
    weights = list((tmp_path / "checkpoints").rglob("sae_weights.safetensors"))
    assert weights
    for file in weights:
        sae = TrainingSAE.load_from_disk(file.parent)
        assert all(torch.isfinite(p).all() for p in sae.parameters())
    assert not (tmp_path / "out").exists()
