"""Through SAELens' doors: its runners and ours, interruptions, what is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_runs import HOOK, runner_config, sae_config
from sae_lens import (
    SAE,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    SAETrainer,
    TopKTrainingSAEConfig,
    TrainingSAE,
)

from hsae_lens import HierarchicalTopKSAE
from hsae_lens._util.private_names import InterruptedException
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.models.hooks import hook_activations
from hsae_lens.training.activation_cache import cache_activations
from hsae_lens.training.checkpoints import missing_from_checkpoint
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner
from hsae_lens.training.trainer import HierarchicalTopKTrainer


@pytest.mark.parametrize("runner", [LanguageModelSAETrainingRunner, HierarchicalTopKTrainingRunner])
@pytest.mark.parametrize(
    "settings",
    [
        {"sae": {}},
        {"sae": {"normalize_activations": "expected_average_only_in"}},
        {"sae": {"normalize_activations": "covariance_whitening"}},
        {"sae": {"normalize_activations": "layer_norm"}},
        {"sae": {"use_sparse_activations": False, "budgets": [1, 4, 8]}},
        {"sae": {}, "autocast": True},
        {"sae": {"dtype": "bfloat16", "kernel": "scan"}, "dtype": "bfloat16"},
        {"sae": {}, "dead_feature_window": 2},
    ],
    ids=str,
)
def test_saelens_runner_trains(
    runner: Any, settings: dict[str, Any], tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    cfg = runner_config(tmp_path, **{**settings, "sae": sae_config(**settings["sae"])})
    runner(cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2).run()
    sae = SAE.load_from_disk(tmp_path / "out")
    assert type(sae) is HierarchicalTopKSAE
    assert sae.cfg.metadata.hook_name == HOOK
    assert sae.cfg.metadata.l0 > 4
    assert all(torch.isfinite(p).all() for p in sae.parameters())
    acts = hook_activations(tiny_gemma2, torch.arange(64).reshape(2, 32), HOOK)
    for k in (1, 8):
        with sae.using_budget(k):
            assert (sae.encode(acts) != 0).sum(-1).max() <= k


def test_hook_z_trains(
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any, tiny_tokens: torch.Tensor
) -> None:
    hook = "blocks.0.attn.hook_z"
    cfg = runner_config(tmp_path, sae_config(reshape_activations="hook_z"), hook_name=hook)
    LanguageModelSAETrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    ).run()
    sae = SAE.load_from_disk(tmp_path / "out")
    z = hook_activations(tiny_gemma2, torch.arange(64).reshape(2, 32), hook)
    assert z.shape[-2:] == (2, 16)
    assert sae(z).shape == z.shape
    table = evaluate_budgets(sae, tiny_gemma2, tiny_tokens[:3], progress=False)
    assert table["explained_variance"].is_monotonic_increasing
    sae.turn_off_forward_pass_hook_z_reshaping()  # as SAELens' own evaluation does
    again = evaluate_budgets(sae, tiny_gemma2, tiny_tokens[:3], progress=False)
    assert again.equals(table)


def test_multi_sae_runner_trains_it_beside_topk(
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    cfg = MultiSAETrainingRunnerConfig(
        saes={"ours": sae_config(), "stock": TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8)},
        hook_names=HOOK,
        model_name="tiny-gemma2",
        context_size=32,
        training_tokens=1280,
        train_batch_size_tokens=128,
        store_batch_size_prompts=8,
        n_batches_in_buffer=16,
        checkpoint_path=None,
        output_path=str(tmp_path),
        logger=LoggingConfig(log_to_wandb=False),
    )
    MultiSAETrainingRunner(cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2).run()
    loaded = [SAE.load_from_disk(f.parent) for f in sorted(tmp_path.rglob("cfg.json"))]
    assert {sae.cfg.architecture() for sae in loaded} == {"hierarchical_topk", "topk"}


def test_interruption_saves_everything_and_resumes(
    tmp_path: Path, make_runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_step = HierarchicalTopKTrainer._train_step

    def interrupted_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.n_training_steps == 5:
            signal.raise_signal(signal.SIGINT)
        return plain_step(self, *args, **kwargs)

    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    runner = make_runner()
    monkeypatch.setattr(HierarchicalTopKTrainer, "_train_step", interrupted_step)
    with pytest.raises(InterruptedException):
        runner.run()
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler

    (checkpoint,) = (tmp_path / "checkpoints").rglob("trainer_state.pt")
    state = torch.load(checkpoint, weights_only=False)
    assert state["n_training_steps"] == 6, "the step in progress was finished"
    saved = TrainingSAE.load_from_disk(checkpoint.parent)
    assert all(
        torch.equal(p, dict(saved.named_parameters())[name])
        for name, p in runner.sae.named_parameters()
    )
    make_runner(resume_from_checkpoint=str(checkpoint.parent)).run()
    assert SAE.load_from_disk(tmp_path / "out").cfg.metadata.l0 > 0


def test_a_run_on_cached_activations_goes_on_behind_those_it_has_seen(
    tmp_path: Path, tiny_gemma2: Any, make_runner: Callable[..., Any]
) -> None:
    tokens = torch.randint(3, 500, (200, 32), generator=torch.Generator().manual_seed(0))
    cache = cache_activations(tiny_gemma2, tokens, HOOK, tmp_path / "activations")
    settings = {"use_cached_activations": True, "cached_activations_path": str(cache)}
    whole = make_runner(n_checkpoints=3, **settings)
    whole.run()
    for checkpoint in (tmp_path / "checkpoints").rglob("trainer_state.pt"):
        resumed = make_runner(resume_from_checkpoint=str(checkpoint.parent), **settings)
        resumed.run()
        rows = [runner.activations_store.current_row_idx for runner in (whole, resumed)]
        assert abs(rows[0] - rows[1]) <= 16, "but for what SAELens' buffer holds"
    assert rows[0] > 80


def signalling_step(at: int, signals: int) -> Any:
    """SAELens' or our step, within which so many signals arrive."""

    def interrupted(plain: Any) -> Any:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.n_training_steps == at:
                for _ in range(signals):
                    signal.raise_signal(signal.SIGINT)
            return plain(self, *args, **kwargs)

        return step

    return interrupted


def updates_of(checkpoint: Path) -> int:
    """How many updates the weights of a checkpoint have had, by the optimizer."""
    state = torch.load(checkpoint / "trainer_state.pt", weights_only=False)
    updates = int(state["optimizer"]["state"][0]["step"])
    assert state["n_training_samples"] == 128 * updates
    return updates


def test_a_second_signal_saves_no_half_done_step(
    make_runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = signalling_step(at=5, signals=2)(HierarchicalTopKTrainer._train_step)
    monkeypatch.setattr(HierarchicalTopKTrainer, "_train_step", step)
    runner = make_runner(n_checkpoints=5)
    with pytest.raises(InterruptedException):
        runner.run()
    (only,) = Path(runner.cfg.checkpoint_path).iterdir()
    assert updates_of(only) == 4, "the one before the signals"


def test_a_signal_while_the_model_runs_stops_at_once(make_runner: Callable[..., Any]) -> None:
    runner = make_runner(n_batches_in_buffer=64)
    plain, calls = runner.activations_store.get_activations, 0

    def signalled(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 10:
            signal.raise_signal(signal.SIGTERM)
        return plain(tokens)

    runner.activations_store.get_activations = signalled
    with pytest.raises(InterruptedException):
        runner.run()
    assert calls == 10, "the buffer is not filled up first"
    (checkpoint,) = Path(runner.cfg.checkpoint_path).iterdir()
    assert updates_of(checkpoint) > 0
    state = torch.load(checkpoint / "trainer_state.pt", weights_only=False)
    assert state["n_training_steps"] == updates_of(checkpoint)


def test_a_stop_that_a_library_makes_another_error_of_is_a_stop(
    make_runner: Callable[..., Any],
) -> None:
    """As pyarrow does where it compares types: what Python raises there means "unequal"."""
    runner = make_runner()

    def signalled(tokens: torch.Tensor) -> torch.Tensor:
        try:
            signal.raise_signal(signal.SIGTERM)
        except InterruptedException:
            raise KeyError("Schema at index 0 was different") from None
        return tokens

    runner.activations_store.get_activations = signalled
    with pytest.raises(InterruptedException):
        runner.run()


def test_other_architectures_are_saved_whole_too(
    make_runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = signalling_step(at=3, signals=1)(SAETrainer._train_step)
    monkeypatch.setattr(SAETrainer, "_train_step", step)
    runner = make_runner(TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8))
    with pytest.raises(InterruptedException):
        runner.run()
    (checkpoint,) = Path(runner.cfg.checkpoint_path).iterdir()
    assert updates_of(checkpoint) == 4
    assert missing_from_checkpoint(checkpoint) == []


def test_a_checkpoint_that_is_cut_short_is_not_gone_on_from(
    tmp_path: Path, make_runner: Callable[..., Any]
) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trainer_state.pt").write_bytes(b"PK cut short")
    with pytest.raises(ValueError, match=r"cut is no whole checkpoint: cfg.json, .*trainer_state"):
        make_runner(resume_from_checkpoint=str(tmp_path / "cut"))


def test_runs_in_a_thread(tmp_path: Path, make_runner: Callable[..., Any]) -> None:
    runner = make_runner(training_tokens=256)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    thread.join(timeout=100)
    assert not thread.is_alive()
    assert (tmp_path / "out" / "sae_weights.safetensors").exists()


@pytest.mark.parametrize("sae", [sae_config(), TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8)])
def test_weights_that_are_not_finite_are_never_saved(
    sae: Any, tmp_path: Path, make_runner: Callable[..., Any]
) -> None:
    """Those of the only step, which no loss has seen, finite until norms are folded into them."""
    runner = make_runner(sae, lr=1e30, training_tokens=128)
    with pytest.raises(FloatingPointError, match=r"became NaN or infinite .* was not saved"):
        runner.run()
    assert list(tmp_path.iterdir()) == []
