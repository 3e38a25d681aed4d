"""The training SAE against SAELens' TopK, and its step in SAELens' trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from helpers.variants import VARIANTS, training_variant
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETrainer,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig
from torch.utils._python_dispatch import TorchDispatchMode

from hsae_lens import HierarchicalTopKTrainingSAEConfig
from hsae_lens.objective.budgets import SCHEDULES
from hsae_lens.objective.kernels import reference
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner
from hsae_lens.training.trainer import HierarchicalTopKTrainer

TRAINER: dict[str, Any] = {
    "n_checkpoints": 0,
    "checkpoint_path": None,
    "save_final_checkpoint": False,
    "total_training_samples": 10**6,
    "device": "cpu",
    "autocast": False,
    "lr": 1e-3,
    "lr_end": 1e-4,
    "lr_scheduler_name": "constant",
    "lr_warm_up_steps": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "lr_decay_steps": 0,
    "n_restart_cycles": 1,
    "dead_feature_window": 10**6,
    "feature_sampling_window": 10**6,
    "logger": LoggingConfig(log_to_wandb=False),
    "n_batches_for_norm_estimate": 1,
}


def step(
    sae: Any, x: torch.Tensor, dead: torch.Tensor | None = None, n: int = 1
) -> TrainStepOutput:
    return sae.training_forward_pass(TrainStepInput(x, {}, dead, n, True))


def batch(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(40, 24, dtype=dtype)


@pytest.mark.parametrize(
    ("variant", "dead_share"),
    [
        (variant, share)
        for variant in VARIANTS
        for share in (0.0, 0.3, 0.8)
        if share == 0 or "norm" not in variant  # SAELens refuses the auxiliary loss of the others
    ],
)
def test_a_loss_at_k_only_is_saelens_topk(variant: str, dead_share: float) -> None:
    shared = VARIANTS[variant] | {"dtype": "float64", "aux_loss_coefficient": 0.7}
    ours = training_variant(variant, budgets=[8], **shared)
    stock = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=24, d_sae=96, k=8, **shared))
    stock.load_state_dict(ours.state_dict())
    dead = torch.rand(96) < dead_share
    got, want = step(ours, batch(), dead), step(stock, batch(), dead)
    got.loss.backward()
    want.loss.backward()
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.sae_out, want.sae_out)
    torch.testing.assert_close(got.feature_acts.to_dense(), want.feature_acts)
    aux = "auxiliary_reconstruction_loss"
    torch.testing.assert_close(got.losses[aux], want.losses[aux])
    torch.testing.assert_close(got.losses["nested_loss"], want.losses["mse_loss"])
    for name, parameter in stock.named_parameters():
        mine = dict(ours.named_parameters())[name].grad
        torch.testing.assert_close(mine, parameter.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def late_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does to the numbers a step needs to know, on the CPU."""
    for module in ("_util.delayed_scalar", "sae.training_sae", "training.trainer"):
        monkeypatch.setattr(f"hsae_lens.{module}.delay_on", lambda device: 2)


@pytest.mark.parametrize("n_dead", [5, 40])
def test_dead_latents_counted_late_are_the_same(n_dead: int, request: Any) -> None:
    dead = torch.arange(96) % 96 >= 96 - n_dead
    want = training_sae(dtype="float64")
    step(want, batch(), dead).loss.backward()
    request.getfixturevalue("late_by_two")
    got = training_sae(dtype="float64")
    aux = "auxiliary_reconstruction_loss"
    assert [step(got, batch(), dead).losses[aux].item() for _ in range(2)] == [0, 0]
    step(got, batch(), dead).loss.backward()  # there is room for 8 and 64 latents now
    for (name, p), q in zip(got.named_parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")


def trained_by(trainer: Any, sae: Any, batches: Sequence[torch.Tensor] = ()) -> Any:
    """SAELens' trainer or ours around an SAE."""
    cfg = SAETrainerConfig(**TRAINER, train_batch_size_samples=40)
    stock = SAETrainer(cfg, sae, iter(batches))
    return stock if trainer is SAETrainer else trainer.adopt(stock)


@pytest.mark.parametrize("value", [torch.nan, 3e38], ids=["activations", "loss"])
def test_bad_numbers_seen_late_do_not_change_the_weights(value: float, late_by_two: None) -> None:
    sae = training_sae()
    trainer = trained_by(HierarchicalTopKTrainer, sae)
    assert not sae.checks_activations
    x = batch(torch.float32)
    bad = x.clone()
    bad[3, 4] = value
    for _ in range(3):
        trainer.step(x)
        trainer.n_training_steps += 1
    before = {name: p.clone() for name, p in sae.named_parameters()}
    trainer.step(bad)
    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())
    trainer.step(x)
    assert not any(torch.equal(p, before[name]) for name, p in sae.named_parameters())
    with pytest.raises(FloatingPointError, match="Such steps do not change the weights"):
        trainer.step(x)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weights", SCHEDULES)
def test_every_budget_equals_autograd_through_the_definition(variant: str, weights: str) -> None:
    sae = training_variant(variant, dtype="float64", budget_weights=weights)
    x = batch()
    output = step(sae, x)
    output.loss.backward()
    got = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()

    acts, _ = sae.encode_with_hidden_pre(x)
    values, indices = acts.topk(8)
    if sae.cfg.rescale_acts_by_decoder_norm:
        values = values / sae.W_dec.norm(dim=-1)[indices]
    prefixes = reference.prefix_reconstructions(values, indices, sae.W_dec, sae.b_dec)
    out = sae.run_time_activation_norm_fn_out(prefixes.transpose(0, 1))
    error = (out - x).pow(2).sum(-1).mean(1)
    loss = (error * torch.tensor(sae.budget_weights, dtype=torch.float64)).sum()
    loss.backward()
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.metrics["mse_at_4"], error[3].detach())
    for name, p in sae.named_parameters():
        torch.testing.assert_close(got[name], p.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kernel", ["native", "scan", "reference"])
def test_float32_kernels_agree_in_the_whole_step(kernel: str) -> None:
    want = training_sae(dtype="float64")
    got = training_sae(kernel=kernel)
    got.load_state_dict(want.state_dict())
    want.load_state_dict(got.state_dict())  # the same float32 numbers
    x = batch(torch.float32)
    step(want, x).loss.backward()
    step(got, x).loss.backward()
    for name, p in got.named_parameters():
        target = dict(want.named_parameters())[name].grad
        error = (p.grad.double() - target).norm() / target.norm()
        assert error < 2e-6, (name, error)


def test_bfloat16_and_autocast_stay_close() -> None:
    x = batch(torch.float32)
    want = step(training_sae(), x)
    low = step(training_sae(dtype="bfloat16"), x)
    low.loss.backward()
    torch.testing.assert_close(low.loss, want.loss, rtol=3e-2, atol=0)
    sae = training_sae()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = step(sae, x)
    mixed.loss.backward()
    torch.testing.assert_close(mixed.loss, want.loss, rtol=2e-2, atol=0)
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters())


def test_metrics_and_reports() -> None:
    sae = training_sae(budgets=[1, 3, 8])
    output = step(sae, batch(torch.float32))
    assert set(output.metrics) == {
        f"{metric}_at_{j}" for metric in ("mse", "explained_variance") for j in (1, 8)
    }
    dense = step(training_sae(use_sparse_activations=False), batch(torch.float32)).feature_acts
    assert torch.equal(output.feature_acts.to_dense(), dense)
    assert list(sae.log_histograms()) == ["weights/W_dec_norms"]


def test_metrics_of_a_batch_without_variance_are_undefined() -> None:
    output = step(training_sae(), torch.ones(40, 24))
    assert all(output.metrics[f"mse_at_{j}"].isfinite() for j in (1, 8))
    assert all(output.metrics[f"explained_variance_at_{j}"].isnan() for j in (1, 8))


class NoFloat64(TorchDispatchMode):
    """Raises where a float64 tensor is made, as a device of type mps does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def test_metrics_and_checks_need_no_float64() -> None:
    sae, x = training_sae(), batch(torch.float32)
    with NoFloat64():
        metrics = sae._metrics(torch.ones(8), x)
        assert metrics["explained_variance_at_8"] < 1
        x[0, 0] = torch.nan
        with pytest.raises(FloatingPointError, match=r"0.10% of the activations"):
            step(sae, x)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_without_norm_or_spread_train_like_any(variant: str) -> None:
    sae = training_variant(variant, kernel="scan")
    x = batch()
    x[3], x[5], x[7] = 0, 3.7, 1e-9
    output = step(sae, x)
    output.loss.backward()
    assert torch.isfinite(output.sae_out).all()
    for name, p in sae.named_parameters():
        assert torch.isfinite(p.grad).all(), name
    if "norm" not in variant or sae.dtype != torch.float64:
        return
    out = sae(x)  # the same by SAELens' definition, at k
    torch.testing.assert_close(output.sae_out, out)
    error = (out - x).pow(2).sum(-1).mean()
    torch.testing.assert_close(output.metrics["mse_at_8"], error, atol=1e-9, rtol=1e-9)


def test_b_dec_starts_at_the_mean_of_the_first_batch_only() -> None:
    sae = training_sae(b_dec_init="mean")
    x = batch(torch.float32)
    sae.b_dec.data.zero_()
    step(sae, x, n=0)
    torch.testing.assert_close(sae.b_dec.data, x.mean(0))
    for n in (1, 0):  # 0: a second run of the same SAE
        step(sae, x + 1, n=n)
        torch.testing.assert_close(sae.b_dec.data, x.mean(0))


@pytest.mark.parametrize("door", ["override_sae", "from_pretrained_path", "resume_from_checkpoint"])
@pytest.mark.parametrize("runner", [LanguageModelSAETrainingRunner, HierarchicalTopKTrainingRunner])
def test_going_on_from_a_trained_sae_keeps_its_b_dec(
    runner: Any, door: str, tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> None:
    def run(name: str, lr: float, override_sae: Any = None, **settings: Any) -> Any:
        cfg = LanguageModelSAERunnerConfig(
            sae=HierarchicalTopKTrainingSAEConfig(d_in=32, d_sae=64, k=8, b_dec_init="mean"),
            model_name="tiny-gemma2",
            model_from_pretrained_kwargs={},
            hook_name="blocks.1.hook_resid_post",
            context_size=32,
            train_batch_size_tokens=64,
            store_batch_size_prompts=4,
            n_batches_in_buffer=4,
            lr=lr,
            lr_warm_up_steps=0,
            checkpoint_path=str(tmp_path / name),
            output_path=None,
            save_final_checkpoint=True,
            logger=LoggingConfig(log_to_wandb=False),
            verbose=False,
            **settings,
        )
        runs = runner(
            cfg,
            override_dataset=tiny_dataset,
            override_model=tiny_gemma2,
            override_sae=override_sae,
        )
        return runs.run()

    trained = run("first", lr=0.1, training_tokens=5 * 64)
    before = trained.b_dec.detach().clone()
    assert before.abs().min() > 0
    checkpoint = next((tmp_path / "first").rglob("final_*"))
    if door == "resume_from_checkpoint":  # the sixth step, at the checkpoint's learning rate
        step_size, tokens = 0.1, 6 * 64
    else:
        step_size, tokens = 1e-6, 64
    given = trained if door == "override_sae" else str(checkpoint)
    after = run("second", lr=step_size, training_tokens=tokens, **{door: given})
    torch.testing.assert_close(after.b_dec.data, before, atol=2 * step_size, rtol=0)


def test_bad_activations_stop_the_step_before_the_weights() -> None:
    sae = training_sae()
    before = {name: p.clone() for name, p in sae.named_parameters()}
    x = batch(torch.float32)
    x[3, 4], x[5, 6] = torch.nan, torch.inf
    with pytest.raises(FloatingPointError, match=r"Step 7: 0.21% of the activations are NaN or"):
        step(sae, x, n=7)
    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())


def test_a_loss_that_is_not_finite_stops_the_step_before_the_weights() -> None:
    sae = training_sae()
    before = {name: p.clone() for name, p in sae.named_parameters()}
    x = batch(torch.float32)
    x[3, 4] = 3e38
    for trainer in (SAETrainer, HierarchicalTopKTrainer):
        with pytest.raises(FloatingPointError, match="Step 0: the loss is (inf|nan), though the"):
            trained_by(trainer, sae).step(x)
    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())


def test_activations_that_are_all_zero_are_not_trained_on() -> None:
    sae = training_sae()
    with pytest.raises(FloatingPointError, match="Step 0: all activations are zero"):
        step(sae, torch.zeros(40, 24), n=0)
    assert step(sae, torch.zeros(40, 24), n=1).loss.isfinite()


@pytest.mark.parametrize("infinite", [True, False])
def test_an_estimated_scale_of_bad_activations_is_found_out(infinite: bool) -> None:
    sae = training_sae(normalize_activations="expected_average_only_in")
    x, bad = batch(torch.float32), batch(torch.float32)
    bad[3, 4] = torch.inf if infinite else torch.nan
    trainer = trained_by(HierarchicalTopKTrainer, sae, [bad, x])  # the first one for the estimate
    with pytest.raises(FloatingPointError, match="all activations are zero|100.00% of the activ"):
        trainer.fit()


def test_a_token_of_zeros_is_scaled_like_any() -> None:
    sae = training_sae(normalize_activations="expected_average_only_in")
    x = batch(torch.float32)
    x[3] = 0
    trainer = trained_by(HierarchicalTopKTrainer, sae, [x, x])
    trainer.cfg.total_training_samples = 40
    trainer.fit()
    assert all(torch.isfinite(p).all() for p in sae.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be in 1..d_sae=96"),
        ({"k": 97}, "k must be in 1..d_sae=96"),
        ({"budgets": []}, "budgets is empty"),
        ({"budgets": [9]}, "outside 1..k=8"),
        ({"budgets": [1, 2.0]}, r"budgets must be whole numbers, got \[1, 2.0\]"),
        ({"budgets": [True, 8]}, r"budgets must be whole numbers, got \[True, 8\]"),
        ({"budgets": [1, 4]}, "first 4 latents, so those up to k=8 .* Set k=4, or give budget 8"),
        ({"budgets": [1, 8], "budget_weights": [1, 0]}, "first 1 latents, .* Set k=1, or give"),
        ({"aux_loss_coefficient": float("nan")}, "must not be negative or infinite"),
        ({"budget_weights": "cubic"}, "Unknown budget weighting"),
        ({"budget_weights": [1.0]}, "1 numbers for 8 budgets"),
        ({"default_budget": 9}, "default_budget 9 is outside"),
        ({"aux_loss_coefficient": -1.0}, "must not be negative"),
        ({"kernel": "nativ"}, "Unknown kernel 'nativ'. Did you mean 'native'"),
        ({"b_dec_init": "median"}, "'zeros' or 'mean'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalTopKTrainingSAEConfig(**{"d_in": 24, "d_sae": 96, "k": 8, **settings})


def test_settings_survive_saelens_dictionaries() -> None:
    cfg = HierarchicalTopKTrainingSAEConfig(d_in=24, d_sae=96, k=8, budgets=[1, 8])
    again = HierarchicalTopKTrainingSAEConfig.from_dict(cfg.to_dict())
    assert again == cfg
    assert cfg.to_dict()["architecture"] == "hierarchical_topk"


def test_synthetic_runner_finds_the_features(tmp_path: Any) -> None:
    result = SyntheticSAERunner(
        SyntheticSAERunnerConfig(
            synthetic_model=SyntheticModelConfig(num_features=16, hidden_dim=16),
            sae=HierarchicalTopKTrainingSAEConfig(d_in=16, d_sae=16, k=4),
            training_samples=300_000,
            lr=3e-3,
            output_path=str(tmp_path / "out"),
            checkpoint_path=None,
            eval_samples=10_000,
            logger=LoggingConfig(log_to_wandb=False),
        )
    ).run()
    assert result.final_eval is not None
    assert result.final_eval.explained_variance > 0.5
    assert list((tmp_path / "out").rglob("sae_weights.safetensors"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_auxiliary_loss_is_in_the_inputs_units_however_normalised(variant: str) -> None:
    """SAELens' TopK refuses this, in the middle of a run: when the first latents die."""
    sae = training_variant(variant, dtype="float64", aux_loss_coefficient=0.7)
    x, dead = 3 * batch() + 1, torch.arange(96) % 5 == 0
    output = step(sae, x, dead)
    (aux,) = (loss for name, loss in output.losses.items() if name.startswith("auxiliary"))
    got = torch.autograd.grad(aux, list(sae.parameters()), materialize_grads=True)

    sae.encode(x)  # for its norms
    normed, shift = {
        "none": lambda: (x, 0),
        "layer_norm": lambda: ((x - sae.ln_mu) / (sae.ln_std + 1e-5), sae.ln_mu),
        "constant_norm_rescale": lambda: (x * sae.x_norm_coeff, 0),
    }[sae.cfg.normalize_activations]()
    centred = normed - sae.b_dec if sae.cfg.apply_b_dec_to_input else normed
    pre = centred @ sae.W_enc + sae.b_enc
    ranked = pre * sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else pre
    chosen = ranked.masked_fill(~dead, -torch.inf).topk(12).indices
    acts = torch.zeros_like(pre).scatter(-1, chosen, pre.gather(-1, chosen))
    x_hat = sae.run_time_activation_norm_fn_out(acts @ sae.W_dec) - shift
    error = (x_hat - (x - output.sae_out)).pow(2).sum(-1).mean()
    torch.testing.assert_close(aux, 0.7 * error)
    want = torch.autograd.grad(0.7 * error, list(sae.parameters()), materialize_grads=True)
    for (name, _), a, b in zip(sae.named_parameters(), got, want, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")
