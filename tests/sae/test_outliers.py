"""Outlier tokens change nothing that is trained, and the saved SAE knows which they are."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from helpers.variants import VARIANTS, training_variant
from sae_lens import SAE, LoggingConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

from hsae_lens import HierarchicalTopKTrainingSAEConfig
from hsae_lens.models.token_mask import longest_activation
from hsae_lens.training.trainer import HierarchicalTopKTrainer

AT = [3, 17]  # where the outliers are
AUX = "auxiliary_reconstruction_loss"


def step(sae: Any, x: torch.Tensor, n: int, dead: torch.Tensor | None = None) -> TrainStepOutput:
    return sae.training_forward_pass(TrainStepInput(x, {}, dead, n, True))


def clean(dtype: torch.dtype = torch.float64, n: int = 40) -> torch.Tensor:
    return torch.randn(n, 24, dtype=dtype, generator=torch.Generator().manual_seed(2))


def with_outliers(dtype: torch.dtype = torch.float64, n: int = 40) -> torch.Tensor:
    x = clean(dtype, n)
    x[AT] *= 500
    return x


def kept(x: torch.Tensor) -> torch.Tensor:
    return x[[n for n in range(len(x)) if n not in AT]]


@pytest.fixture
def late_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does: nothing is known of a batch before the next ones."""
    for module in ("_util.delayed_scalar", "sae.training_sae", "sae.outliers"):
        monkeypatch.setattr(f"hsae_lens.{module}.delay_on", lambda device: 2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dead_share", [0.0, 0.5])
def test_a_step_is_one_without_the_outliers(variant: str, dead_share: float) -> None:
    dead = torch.arange(96) < 96 * dead_share
    ours = training_variant(variant, dtype="float64")
    alone = copy.deepcopy(ours)
    for n, x in enumerate([with_outliers(), with_outliers() + 0.1]):  # n=0 sets b_dec, too
        ours.zero_grad(), alone.zero_grad()
        got, want = step(ours, x, n, dead), step(alone, kept(x), n, dead)
        got.loss.backward()
        want.loss.backward()
        torch.testing.assert_close(got.losses, want.losses)
        torch.testing.assert_close(got.metrics, want.metrics)
        fired, dense = got.feature_acts.to_dense(), want.feature_acts.to_dense()
        assert not fired[AT].any()
        torch.testing.assert_close(kept(fired), dense)
        for (name, p), q in zip(ours.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, msg=lambda m, n=name: f"{n}: {m}")
            torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kernel", ["native", "scan", "bags", "reference"])
def test_every_kernel_leaves_them_out(kernel: str, late_by_two: None) -> None:
    ours, alone = training_sae(kernel=kernel), training_sae(kernel=kernel)
    x = with_outliers(torch.float32)
    step(ours, x, 0).loss.backward()
    step(alone, kept(x), 0).loss.backward()
    for (name, p), q in zip(ours.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_without_outliers_nothing_changes_by_a_bit() -> None:
    ours, before = training_sae(), training_sae(outlier_factor=None)
    for n in range(2):
        a, b = step(ours, clean(torch.float32), n), step(before, clean(torch.float32), n)
        a.loss.backward()
        b.loss.backward()
        assert torch.equal(a.loss, b.loss)
        assert torch.equal(a.feature_acts.to_dense(), b.feature_acts.to_dense())
    for p, q in zip(ours.parameters(), before.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_a_batch_of_outliers_alone_teaches_nothing(late_by_two: None) -> None:
    sae = training_sae()
    step(sae, clean(torch.float32), 0)
    output = step(sae, 1e4 * clean(torch.float32), 1)
    output.loss.backward()
    assert output.loss == 0
    assert not any(p.grad.any() for p in sae.parameters())
    assert not output.feature_acts.to_dense().any()


def test_the_rule_and_what_is_said_of_it(caplog: pytest.LogCaptureFixture) -> None:
    sae = training_sae(dtype="float64")
    x = with_outliers()
    with caplog.at_level(logging.WARNING, "hsae_lens"):
        step(sae, x, 0)
        step(sae, x, 1)
    limit = sae.cfg.metadata.max_norm
    assert limit == pytest.approx(5 * x.norm(dim=-1).median().item(), rel=1e-3)
    assert [record.getMessage() for record in caplog.records] == [
        f"2 of the first 40 activations are longer than {limit:g}, 5 times the median, and are "
        "outliers: left out of training and judging. outlier_factor=None keeps them in training."
    ]


def test_no_outliers_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hsae_lens"):
        step(training_sae(), clean(torch.float32), 0)
    assert not caplog.records


def test_the_saved_sae_judges_by_it(tmp_path: Path) -> None:
    sae = training_sae()
    for n in range(20):
        step(sae, with_outliers(torch.float32), n)
    sae.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path)
    assert longest_activation(saved) == sae.cfg.metadata.max_norm
    assert saved.cfg.metadata.outlier_share == 2 / 40
    assert saved.cfg.calibration["tokens"] == 20 * 38
    json.dumps(saved.cfg.to_dict(), allow_nan=False)


@pytest.mark.parametrize("x", [torch.zeros(40, 24), torch.full((40, 24), 3e38)])
def test_a_median_of_no_use_sets_no_limit(x: torch.Tensor) -> None:
    x[0] = 1.0
    sae = training_sae()
    sae._outliers.find_limit(sae, x)
    assert sae.cfg.metadata.max_norm is None


def test_a_limit_that_is_there_is_kept() -> None:
    sae = training_sae()
    sae.cfg.metadata.max_norm = 5.5
    x = clean(torch.float32)
    got = step(sae, x, 0)
    long = x.norm(dim=-1) > 5.5
    assert 0 < long.sum() < 20
    assert torch.equal(got.feature_acts.to_dense().any(-1), ~long)
    assert sae.cfg.metadata.max_norm == 5.5
    sae.cfg.metadata.max_norm = 1.0
    with pytest.raises(ValueError, match=r"max_norm=1 would leave out 100% of .* Set it to None"):
        step(sae, x, 0)
    assert step(sae, x, 1).loss == 0  # in the middle of a run it stays


def test_none_keeps_every_token() -> None:
    sae = training_sae(outlier_factor=None)
    sae.cfg.metadata.max_norm = 1.0  # for judging alone
    output = step(sae, with_outliers(torch.float32), 0)
    assert output.feature_acts.to_dense()[AT].any()
    assert sae.cfg.metadata.max_norm == 1.0


def test_whitened_activations_have_no_outliers() -> None:
    sae = training_sae(normalize_activations="covariance_whitening")
    step(sae, with_outliers(torch.float32), 0)
    assert sae.cfg.metadata.max_norm is None


def trainer(sae: Any, batches: list[torch.Tensor]) -> SAETrainer[Any, Any]:
    cfg = SAETrainerConfig(
        total_training_samples=40 * (len(batches) - 1),
        train_batch_size_samples=40,
        lr_end=3e-5,
        n_batches_for_norm_estimate=1,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg, sae, iter(batches))


@pytest.mark.parametrize("ours", [True, False])
def test_a_scaled_run_ends_with_a_limit_in_raw_units(ours: bool, tmp_path: Path) -> None:
    sae = training_sae(normalize_activations="expected_average_only_in")
    x = 7 * with_outliers(torch.float32)
    run = trainer(sae, [x] * 21)
    (HierarchicalTopKTrainer.adopt(run) if ours else run).fit()
    limit = sae.cfg.metadata.max_norm
    assert limit == pytest.approx(5 * x.norm(dim=-1).median().item(), rel=1e-3)
    sae.save_inference_model(tmp_path)
    assert SAE.load_from_disk(tmp_path).cfg.calibration["tokens"] == 20 * 38


@pytest.mark.parametrize("ours", [True, False])
def test_trainers_count_no_firing_of_outliers(ours: bool) -> None:
    sae, alone = training_sae(), training_sae()
    x = with_outliers(torch.float32)
    runs = [trainer(sae, [x] * 3), trainer(alone, [kept(x)] * 3)]
    runs = [HierarchicalTopKTrainer.adopt(run) if ours else run for run in runs]
    for run in runs:
        for n in range(2):
            run.n_training_steps = n
            run.step(x if run is runs[0] else kept(x))
    assert torch.equal(runs[0].act_freq_scores, runs[1].act_freq_scores)
    assert torch.equal(runs[0].n_forward_passes_since_fired, runs[1].n_forward_passes_since_fired)


def test_a_checkpoint_brings_its_limit_back(tmp_path: Path) -> None:
    sae = training_sae()
    step(sae, with_outliers(torch.float32), 0)
    sae.save_model(tmp_path)
    other = training_sae()
    other.load_weights_from_checkpoint(tmp_path)
    assert other.cfg.metadata.max_norm == sae.cfg.metadata.max_norm
    again = HierarchicalTopKTrainingSAEConfig.from_dict(sae.cfg.to_dict())
    assert again.outlier_factor == 5.0


def test_copies_go_on_counting() -> None:
    sae = training_sae()
    step(sae, with_outliers(torch.float32), 0)
    for twin in (copy.deepcopy(sae), pickle.loads(pickle.dumps(sae))):
        step(twin, with_outliers(torch.float32), 1)
        assert (twin._outliers.n_tokens, twin._outliers.share()) == (80, 0.05)
    assert sae._outliers.n_tokens == 40


@pytest.mark.parametrize("factor", [1.0, -5.0, float("nan"), float("inf")])
def test_a_factor_that_cannot_be(factor: float) -> None:
    with pytest.raises(ValueError, match="outlier_factor must be greater than 1, or None"):
        HierarchicalTopKTrainingSAEConfig(d_in=24, d_sae=96, k=8, outlier_factor=factor)
