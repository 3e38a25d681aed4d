"""Through SAELens' doors: its runners, its evaluation, checkpoints and interruptions."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from sae_lens import (
    SAE,
    ActivationsStore,
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    SAETrainer,
    TopKTrainingSAEConfig,
    TrainingSAE,
    run_evals,
)
from sae_lens.evals import get_eval_everything_config
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activation_scaler import ActivationScaler

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAEConfig
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.models import TokenMask
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.tokens import token_dataset
from hsae_lens.training.activation_cache import cache_activations
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner, missing_from_checkpoint
from hsae_lens.training.trainer import HierarchicalTopKTrainer

HOOK = "blocks.1.hook_resid_post"


def sae_config(**overrides: Any) -> HierarchicalTopKTrainingSAEConfig:
    return HierarchicalTopKTrainingSAEConfig(**{"d_in": 32, "d_sae": 64, "k": 8, **overrides})


def runner_config(tmp_path: Path, sae: Any = None, **overrides: Any) -> Any:
    settings = {
        "sae": sae or sae_config(),
        "model_name": "tiny-gemma2",
        "model_from_pretrained_kwargs": {},
        "hook_name": HOOK,
        "context_size": 32,
        "training_tokens": 20 * 128,
        "train_batch_size_tokens": 128,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 16,
        "n_batches_for_norm_estimate": 2,
        "lr": 3e-3,
        "checkpoint_path": str(tmp_path / "checkpoints"),
        "output_path": str(tmp_path / "out"),
        "logger": LoggingConfig(log_to_wandb=False),
        "verbose": False,
        **overrides,
    }
    return LanguageModelSAERunnerConfig(**settings)


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
    sparse: bool, tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    cfg = runner_config(tmp_path, sae_config(use_sparse_activations=sparse))
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
    runner._set_sae_metadata()  # as run() begins
    store = runner.activations_store
    trainer = SAETrainer(cfg.to_sae_trainer_config(), runner.sae, store)
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
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_step = HierarchicalTopKTrainer._train_step

    def interrupted_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.n_training_steps == 5:
            signal.raise_signal(signal.SIGINT)
        return plain_step(self, *args, **kwargs)

    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    cfg = runner_config(tmp_path)
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
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
    resumed = HierarchicalTopKTrainingRunner(
        runner_config(tmp_path, resume_from_checkpoint=str(checkpoint.parent)),
        override_dataset=tiny_dataset,
        override_model=tiny_gemma2,
    )
    resumed.run()
    assert SAE.load_from_disk(tmp_path / "out").cfg.metadata.l0 > 0


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
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = signalling_step(at=5, signals=2)(HierarchicalTopKTrainer._train_step)
    monkeypatch.setattr(HierarchicalTopKTrainer, "_train_step", step)
    cfg = runner_config(tmp_path, n_checkpoints=5)
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
    with pytest.raises(InterruptedException):
        runner.run()
    (only,) = Path(cfg.checkpoint_path).iterdir()
    assert updates_of(only) == 4, "the one before the signals"


def test_a_signal_while_the_model_runs_stops_at_once(
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    cfg = runner_config(tmp_path, n_batches_in_buffer=64)
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
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
    (checkpoint,) = Path(cfg.checkpoint_path).iterdir()
    assert updates_of(checkpoint) > 0
    state = torch.load(checkpoint / "trainer_state.pt", weights_only=False)
    assert state["n_training_steps"] == updates_of(checkpoint)


def test_other_architectures_are_saved_whole_too(
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = signalling_step(at=3, signals=1)(SAETrainer._train_step)
    monkeypatch.setattr(SAETrainer, "_train_step", step)
    cfg = runner_config(tmp_path, TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8))
    with pytest.raises(InterruptedException):
        HierarchicalTopKTrainingRunner(
            cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
        ).run()
    (checkpoint,) = Path(cfg.checkpoint_path).iterdir()
    assert updates_of(checkpoint) == 4
    assert missing_from_checkpoint(checkpoint) == []


def test_runs_in_a_thread(tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any) -> None:
    cfg = runner_config(tmp_path, training_tokens=256)
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    thread.join(timeout=100)
    assert not thread.is_alive()
    assert (tmp_path / "out" / "sae_weights.safetensors").exists()


def test_what_cannot_be_trained_is_said_before_anything_is_collected(
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    def run(sae: Any = None, **settings: Any) -> None:
        HierarchicalTopKTrainingRunner(
            runner_config(tmp_path, sae, **settings),
            override_dataset=tiny_dataset,
            override_model=tiny_gemma2,
        )

    with pytest.raises(ValueError, match=r"d_in is 24, but blocks.1.*width 32: set d_in to 32"):
        run(sae_config(d_in=24))
    near = r"no hook 'blocks.1.hook_resid_pots'.* Did you mean 'blocks.1.hook_resid_post'"
    with pytest.raises(ValueError, match=near):
        run(hook_name="blocks.1.hook_resid_pots")
    head = {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 1}
    with pytest.raises(ValueError, match="width 16"):
        run(**head)
    run(sae_config(d_in=16), **head)
    with pytest.raises(ValueError, match=r"hook_head_index is 5, .* has 2 heads: it must be below"):
        run(sae_config(d_in=16), hook_name="blocks.0.attn.hook_z", hook_head_index=5)
    with pytest.raises(ValueError, match=r"hook_head_index is 0, .*no heads: it must be None"):
        run(hook_head_index=0)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trainer_state.pt").write_bytes(b"PK cut short")
    with pytest.raises(ValueError, match=r"cut is no whole checkpoint: cfg.json, .*trainer_state"):
        run(resume_from_checkpoint=str(tmp_path / "cut"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"training_tokens": 0}, "training_tokens must be at least 1, got 0"),
        ({"training_tokens": -5}, "training_tokens must be at least 1, got -5"),
        ({"train_batch_size_tokens": 0}, "train_batch_size_tokens must be at least 1"),
        ({"store_batch_size_prompts": 0}, "store_batch_size_prompts must be at least 1"),
        ({"n_batches_in_buffer": 0}, "n_batches_in_buffer must be at least 1"),
        ({"feature_sampling_window": 0}, "feature_sampling_window must be at least 1"),
        ({"dead_feature_window": 0}, "dead_feature_window must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0 .* got 0.0"),
        ({"lr": math.inf}, "lr must be above 0 .* got inf"),
        ({"lr": math.nan}, "lr must be above 0 .* got nan"),
        (
            {"lr_scheduler_name": "cosineannealingwarmrestarts", "n_restart_cycles": 21},
            "n_restart_cycles must be at least 1, and there must be a training step .* got 21",
        ),
        ({"device": "banana"}, "Unknown device 'banana'"),
        ({"llm_device": "banana"}, "Unknown device 'banana'"),
        ({"act_store_device": "banana"}, "Unknown device 'banana'"),
        ({"dtype": "float99"}, "float99"),
        ({"output_path": __file__}, "output_path .* is a file. Give another folder"),
        ({"hook_name": "blocks.0.attn.hook_pattern"}, "hook_name must be of a hook with a vector"),
        ({"hook_name": "blocks.0.attn.hook_z"}, "reshape_activations must be .hook_z. at hooks"),
        ({"sae": sae_config(reshape_activations="hook_z")}, "reshape_activations must be .*others"),
        ({"sae": sae_config(decoder_init_norm=0.0)}, "decoder_init_norm must be a finite number"),
        ({"sae": sae_config(decoder_init_norm=math.nan)}, "decoder_init_norm must be a finite"),
        ({"sae": TopKTrainingSAEConfig(d_in=32, d_sae=8, k=9)}, "k must be above 0 and at most"),
        ({"sae": BatchTopKTrainingSAEConfig(d_in=32, d_sae=0, k=1)}, "d_sae must be at least 1"),
        (
            {"sae": TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8, use_sparse_activations=True)},
            "use_sparse_activations must be False for topk on a CPU",
        ),
    ],
    ids=str,
)
def test_settings_are_looked_at_before_anything_is_opened(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        HierarchicalTopKTrainingRunner(
            runner_config(tmp_path, **{"model_name": "would be opened", **settings})
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sae", [sae_config(), TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8)])
def test_weights_that_are_not_finite_are_never_saved(
    sae: Any, tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    """Those of the only step, which no loss has seen, finite until norms are folded into them."""
    cfg = runner_config(tmp_path, sae, lr=1e30, training_tokens=128)
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
    with pytest.raises(FloatingPointError, match=r"became NaN or infinite .* was not saved"):
        runner.run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sae", "says"),
    [
        (sae_config(), r"Step \d+: .*% of the activations"),
        (TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8), "became NaN .* checkpoints are intact"),
    ],
)
def test_nan_activations_stop_training_with_the_checkpoint_intact(
    sae: Any, says: str, tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    cfg = runner_config(tmp_path, sae, n_checkpoints=3)
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
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


def test_cached_activations_train(
    tmp_path: Path, tiny_gemma2: Any, tiny_tokens: torch.Tensor, tiny_dataset: Any
) -> None:
    folder = cache_activations(
        tiny_gemma2,
        tiny_tokens,
        HOOK,
        tmp_path / "acts",
        mask=TokenMask.from_model(tiny_gemma2, slice(2, None)),
    )
    cfg = runner_config(tmp_path, use_cached_activations=True, cached_activations_path=str(folder))
    runner = HierarchicalTopKTrainingRunner(
        cfg, override_dataset=tiny_dataset, override_model=tiny_gemma2
    )
    cached = runner.activations_store.cached_activation_dataset
    acts = hook_activations(tiny_gemma2, tiny_tokens[:8], HOOK)[:, 2:].reshape(-1, 32)
    rows = cached[:][HOOK].reshape(-1, 32)
    assert torch.cdist(acts[:50], rows).min(1).values.median() < 1e-4, "the same activations"
    assert not torch.isin(cached[:]["token_ids"], torch.tensor([0, 1, 2])).any()
    runner.run()
    with pytest.raises(ValueError, match="no hook"):
        cache_activations(tiny_gemma2, tiny_tokens, "blocks.9.hook_resid_post", tmp_path / "x")


def test_a_cache_replaces_only_what_it_wrote(
    tmp_path: Path, tiny_gemma2: Any, tiny_tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cache(folder: Path, n: int) -> int:
        cache_activations(tiny_gemma2, tiny_tokens[:n], HOOK, folder)
        return len(load_from_disk(str(folder)))

    folder = tmp_path / "acts"
    folder.mkdir()
    assert cache(folder, 8) < cache(folder, 16), "an empty folder, and an earlier cache"
    before = {file: file.read_bytes() for file in folder.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", lambda self, path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache(folder, 4)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder], "nothing half-written is left"

    (folder / "notes.txt").write_text("mine")
    others = tmp_path / "saelens"
    token_dataset(tiny_tokens).save_to_disk(others)
    for foreign, name in ((folder, "notes.txt"), (others, "data-00000-of-00001.arrow")):
        with pytest.raises(ValueError, match=f"did not write .*{name}.*give another folder"):
            cache(foreign, 4)
        assert (foreign / name).exists()
