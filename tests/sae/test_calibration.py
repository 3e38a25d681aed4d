"""Budgets that ask every token: thresholds, what they spend, error targets, stock JumpReLU SAEs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_sae
from helpers.processes import python
from helpers.training_runs import runner_config, sae_config
from helpers.variants import VARIANTS, activations_for, assert_near, inference_variant
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE, JumpReLUSAE, LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainStepInput

from hsae_lens import ErrorTarget, HierarchicalTopKSAE, MeanBudget, calibrate
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import token_dataset, tokenize
from hsae_lens.sae.calibration import RecentActivations
from hsae_lens.sae.normalization import joined_heads
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner

N = 2000


def calibrated(variant: str = "plain", **overrides: Any) -> HierarchicalTopKSAE:
    sae = inference_variant(variant, **overrides)
    calibrate(sae, joined(activations_for(sae, N)), progress=False)
    return sae


def joined(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


def mean_active(acts: torch.Tensor) -> float:
    return (acts != 0).sum(-1).double().mean().item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_mean_budget_is_met_on_the_activations_that_set_it(variant: str) -> None:
    sae = calibrated(variant)
    x = activations_for(sae, N)
    # Many bfloat16 numbers are equal: a threshold is above all of them or below all.
    tolerance = 0.03 if sae.dtype == torch.bfloat16 else 5 / N
    for k in (1, 2.5, 4, 8):
        with sae.using_budget(MeanBudget(k)):
            whole = float(k).is_integer()
            assert mean_active(sae.encode(x)) == pytest.approx(
                k, rel=tolerance if whole else 0.05 + tolerance
            )


@pytest.mark.parametrize("variant", VARIANTS)
def test_thresholds_lie_where_so_many_activations_exceed_them(variant: str) -> None:
    sae = calibrated(variant)
    with joined_heads(sae):
        everything = sae._scaled_pre(joined(activations_for(sae, N))).double()
    falling = everything.flatten().sort(descending=True).values
    for k, threshold in enumerate(sae.calibration.thresholds, 1):
        at, after = falling[k * N - 1].item(), falling[k * N].item()
        if sae.dtype == torch.bfloat16:  # many are equal, and more or fewer than k · N exceed one
            exceeding = int((falling > threshold).sum())
            nearest = min(int((falling > at).sum()), int((falling >= at).sum()),
                          key=lambda n: abs(n - k * N))  # fmt: skip
            assert abs(exceeding - k * N) == abs(nearest - k * N)
        else:
            assert after * (1 - 3e-4) <= threshold <= at * (1 + 3e-4)


def test_calibration_streams(sae: HierarchicalTopKSAE) -> None:
    x = activations_for(sae, N)
    whole = calibrate(sae, x, progress=False)
    assert whole.tokens == N
    centred = x.double() - x.double().mean(0)
    assert whole.variance == pytest.approx(centred.square().sum(-1).mean().item(), rel=1e-9)
    for pieces in (x.split(7), (part for part in x.split(900)), [x[:0], *x.split(1024)]):
        again = calibrate(sae, pieces, progress=False)
        assert again.thresholds == pytest.approx(whole.thresholds, rel=3e-4)
        assert again.variance == pytest.approx(whole.variance, rel=1e-9)


def test_other_thresholds_and_scales_make_former_figures_void(sae: HierarchicalTopKSAE) -> None:
    rows = [{"text": "a", "k": 4, "l0": 4.0, "rule": rule} for rule in ("fixed", "mean", "error")]
    sae.cfg.metadata.frontier = [*rows, {"text": "a", "k": 4}]
    x = activations_for(sae, N)
    calibrate(sae, x, progress=False)
    assert sae.cfg.metadata.frontier == [rows[0], {"text": "a", "k": 4}]
    for changed in (sae, training_sae()):
        for fold, arguments in (
            ("fold_activation_norm_scaling_factor", (0.3,)),
            ("fold_activation_whitening", (torch.zeros(24), torch.eye(24), torch.eye(24))),
        ):
            calibrate(changed, x, progress=False)
            getattr(changed, fold)(*arguments)
            assert changed.cfg.calibration is None


def test_outliers_that_do_not_count_do_not_lengthen_a_code(sae: HierarchicalTopKSAE) -> None:
    x = activations_for(sae, N)
    calibrate(sae, x, progress=False)
    x = torch.cat([x[:50], 100 * x[:1]])
    keep = torch.arange(51) < 50
    budgets = [4, MeanBudget(4)]
    code, lengths = sae.encode_budgets(x, budgets, keep)
    _, without = sae.encode_budgets(x[:50], budgets)
    assert torch.equal(lengths[:, :50], without)
    assert code.k < sae.encode_budgets(x, budgets)[0].k
    with pytest.raises(ValueError, match="There are no budgets"):
        sae.encode_budgets(x, [])


def test_a_long_mean_does_not_drown_the_variance(sae: HierarchicalTopKSAE) -> None:
    x = activations_for(sae, N) + 1e4
    exact = x.double().var(0, correction=0).sum().item()
    assert calibrate(sae, x, progress=False).variance == pytest.approx(exact, rel=1e-6)


def test_outlier_norms_are_left_out(sae: HierarchicalTopKSAE) -> None:
    x = activations_for(sae, N)
    without = calibrate(sae, x, progress=False)
    sae.cfg.metadata.max_norm = 100
    outliers = torch.cat([x, 1e4 * torch.ones(50, 24)])
    assert calibrate(sae, outliers, progress=False) == without


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_token_uses_is_a_prefix_of_its_code(variant: str) -> None:
    sae = calibrated(variant)
    x = activations_for(sae, 3, 50)
    budgets = [3, 8, MeanBudget(2), MeanBudget(8), ErrorTarget(0.3)]
    code, lengths = sae.encode_budgets(x, budgets)
    assert lengths.shape == (5, 3, 50)
    assert code.k >= 8
    assert lengths[3].max() > 8, "more than K where many are large"
    assert lengths[3].min() < 8
    assert (lengths[2] <= lengths[3]).all()
    assert torch.equal(lengths[0], torch.full((3, 50), 3))
    for budget, own in zip(budgets, lengths, strict=True):
        dense = code.prefixes(own).to_dense(96)
        assert torch.equal(sae.encode_at(x, budget).to_dense(96), dense)
        with sae.using_budget(budget):
            assert torch.equal(sae.encode(x), dense)
            alone = sae.encode_budgets(x, [budget])
        assert torch.equal(alone[1][0], own), "budgets together are each budget alone"


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_error_target_takes_the_fewest_latents_that_meet_it(variant: str) -> None:
    sae = calibrated(variant)
    x = activations_for(sae, 40)
    code = sae.encode_ordered(x)
    wide = torch.promote_types(sae.dtype, torch.float32)
    errors = torch.stack(
        [(x_hat.to(wide) - x.to(wide)).flatten(1).square().sum(-1)
         for x_hat in sae.each_budget(code, range(9))]
    )  # fmt: skip
    for part in (0.1, 0.5, 0.9):
        share = errors.double().quantile(part).item() / sae.calibration.variance
        enough = errors <= ErrorTarget(share).share * sae.calibration.variance
        expected = torch.where(enough.any(0), enough.to(torch.uint8).argmax(0), 8)
        _, (lengths,) = sae.encode_budgets(x, [ErrorTarget(share)])
        assert torch.equal(lengths, expected)
        assert enough.any(0).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_mean_k_is_a_stock_jumprelu_on_the_same_weights(variant: str, tmp_path: Path) -> None:
    sae = calibrated(variant)
    x = activations_for(sae, 3, 50)
    stock = sae.at_mean_k(4)
    assert type(stock) is JumpReLUSAE
    assert all(getattr(stock, n) is getattr(sae, n) for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
    assert not set(map(id, stock.hook_dict.values())) & set(map(id, sae.hook_dict.values()))
    with sae.using_budget(MeanBudget(4)):
        assert_near(stock(x), sae(x))
        if not sae.cfg.rescale_acts_by_decoder_norm:
            assert torch.equal(stock.encode(x), sae.encode(x))
    stock.save_model(tmp_path / "stock")
    assert torch.equal(SAE.load_from_disk(tmp_path / "stock").encode(x), stock.encode(x))


def test_the_exported_jumprelu_needs_nothing_of_ours(tmp_path: Path) -> None:
    sae = calibrated(rescale_acts_by_decoder_norm=False)
    sae.at_mean_k(4).save_model(tmp_path / "stock")
    x = activations_for(sae, 5, 7)
    torch.save(x, tmp_path / "x.pt")
    done = python(
        "import sys, torch; from sae_lens import SAE\n"
        f"sae = SAE.load_from_disk({str(tmp_path / 'stock')!r})\n"
        f"torch.save(sae(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'y.pt')!r})\n"
        "print(sae.cfg.architecture(), 'hsae_lens' in sys.modules)"
    )
    assert done.stdout == "jumprelu False\n", done.stderr
    with sae.using_budget(MeanBudget(4)):
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), sae(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_flow_as_through_the_stock_sae(variant: str) -> None:
    sae = calibrated(variant)
    x = activations_for(sae, 3, 5).requires_grad_()
    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    parameters = [x, *(getattr(sae, name) for name in names)]
    with sae.using_budget(MeanBudget(4)):
        ours = torch.autograd.grad(sae(x).square().sum(), parameters)
    theirs = torch.autograd.grad(sae.at_mean_k(4)(x).square().sum(), parameters)
    for name, got, want in zip(("x", *names), ours, theirs, strict=True):
        scale = want.abs().max()
        assert ((got - want).abs().max() <= (0.05 if sae.dtype == torch.bfloat16 else 1e-4) * scale
                ), name  # fmt: skip
        assert scale > 0, name


def test_the_calibration_is_saved_and_older_files_load_without(
    sae: HierarchicalTopKSAE, tmp_path: Path
) -> None:
    calibrate(sae, activations_for(sae, N), progress=False)
    sae.save_model(tmp_path / "sae")
    again = SAE.load_from_disk(tmp_path / "sae")
    assert again.calibration == sae.calibration
    file = tmp_path / "sae" / "cfg.json"
    older = json.loads(file.read_text())
    del older["calibration"]
    file.write_text(json.dumps(older))
    older_sae = SAE.load_from_disk(tmp_path / "sae")
    assert torch.equal(older_sae.encode(torch.ones(24)), again.encode(torch.ones(24)))
    for ask in (
        lambda: setattr(older_sae, "budget", MeanBudget(4)),
        lambda: setattr(older_sae, "budget", ErrorTarget(0.2)),
        lambda: older_sae.at_mean_k(4),
        lambda: older_sae.encode_at(torch.ones(24), MeanBudget(4)),
    ):
        with pytest.raises(ValueError, match=r"no thresholds .*hsae_lens.calibrate\(sae, act"):
            ask()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"thresholds": [3.0, 2, 1, 1, 1, 1, 1, 2]}, "do not fall with the budget"),
        ({"thresholds": [3.0, 2, 1]}, "must hold 8 thresholds"),
        ({"thresholds": [float("nan")] * 8}, "must hold 8 thresholds"),
        ({"thresholds": [1.0] * 7 + [-1]}, "must hold 8 thresholds"),
        ({"thresholds": "3 2 1"}, "must hold 8 thresholds"),
        ({"variance": 0}, "must hold 8 thresholds"),
        ({"variance": None}, "must hold 8 thresholds"),
        ({"thresholds": ["3", "2", "1", "1", "1", "1", "1", "1"]}, "must hold 8 thresholds"),
        ({"thresholds": [True] * 8}, "must hold 8 thresholds"),
        ({"tokens": "many"}, "must hold 8 thresholds"),
    ],
)
def test_a_damaged_calibration_is_refused(
    damage: dict[str, Any], said: str, sae: HierarchicalTopKSAE, tmp_path: Path
) -> None:
    calibrate(sae, activations_for(sae, N), progress=False)
    sae.save_model(tmp_path / "sae")
    file = tmp_path / "sae" / "cfg.json"
    saved = json.loads(file.read_text())
    saved["calibration"] |= damage
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=said) as caught:
        HierarchicalTopKSAE.load_from_disk(tmp_path / "sae")
    assert "cfg.json" in str(caught.value)
    file.write_text(json.dumps({**saved, "calibration": [1, 2]}))
    with pytest.raises(ValueError, match="must hold 8 thresholds"):
        SAE.load_from_disk(tmp_path / "sae")


def test_what_cannot_be_calibrated_with(sae: HierarchicalTopKSAE) -> None:
    x = activations_for(sae, N)
    with pytest.raises(ValueError, match="100 activations are too few.*give 512"):
        calibrate(sae, x[:100], progress=False)
    with pytest.raises(ValueError, match=r"reads activations \[n, d_in=24\], got \[n, 23\]"):
        calibrate(sae, x[:, :23], progress=False)
    with pytest.raises(ValueError, match=r"got \[n, 100, 24\]"):
        calibrate(sae, x.view(20, 100, 24), progress=False)
    with pytest.raises(ValueError, match="All activations are the same"):
        calibrate(sae, torch.ones(600, 24), progress=False)
    bad = x.clone()
    bad[1500, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        calibrate(sae, bad, progress=False)
    assert sae.cfg.calibration is None, "nothing is kept of what failed"
    with pytest.raises(ValueError, match="A 'topk' SAE has no mean budgets to calibrate"):
        calibrate(sae.at_k(8), x, progress=False)


@pytest.mark.parametrize("k", [0, -1, "4", True, float("nan"), float("inf"), None])
def test_what_is_no_mean_budget(k: Any) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        MeanBudget(k)
    with pytest.raises(ValueError, match="must be a number above 0"):
        ErrorTarget(k)


def test_mean_budgets_are_those_that_were_trained() -> None:
    sae = calibrated()
    for k in (0.5, 8.1, 100):
        with pytest.raises(ValueError, match=f"A mean budget of {k:g} is outside 1..8"):
            sae.budget = MeanBudget(k)
        with pytest.raises(ValueError, match="outside 1..8"):
            sae.at_mean_k(k)
    assert sae.budget == 8


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 20))
def test_the_latest_activations_are_kept(batches: list[int], size: int) -> None:
    recent, start = RecentActivations(size, 1), 0
    for n in batches:
        recent.add(torch.arange(start, start + n).float()[:, None])
        start += n
    kept = torch.cat([torch.empty(0, 1), *recent.batches()])
    assert sorted(kept.flatten().tolist()) == [*range(max(0, start - size), start)]


@pytest.mark.parametrize("runner", [LanguageModelSAETrainingRunner, HierarchicalTopKTrainingRunner])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize_activations": "expected_average_only_in"},
        {"normalize_activations": "covariance_whitening"},
        {"normalize_activations": "layer_norm", "rescale_acts_by_decoder_norm": False},
    ],
    ids=str,
)
def test_a_trained_sae_is_calibrated(
    runner: Any, settings: dict[str, Any], gemma2_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = open_model(gemma2_folder, dtype=torch.float32)
    tokens = tokenize(cpython_reference()[:3], model.tokenizer, 32)
    cfg = runner_config(tmp_path, sae_config(**settings), exclude_special_tokens=True)
    runner(cfg, override_dataset=token_dataset(tokens), override_model=model).run()
    sae = SAE.load_from_disk(tmp_path / "out")
    assert sae.calibration.tokens == 20 * 128
    _, cache = model.run_with_cache(tokens, names_filter=cfg.hook_name)
    x = cache[cfg.hook_name][:, 1:].flatten(0, 1)
    for k in (2, 4):
        with sae.using_budget(MeanBudget(k)):
            # Of these 7,500 tokens a third were trained on, in 20 steps.
            assert mean_active(sae.encode(x)) == pytest.approx(k, rel=0.2)
    variance = x.double().var(0, correction=0).sum().item()
    assert sae.calibration.variance == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("rescale", [True, False])
def test_what_is_kept_of_training_follows_the_folded_scaling(rescale: bool, tmp_path: Path) -> None:
    x = activations_for(training_sae(), 700) * 5 + 3
    M = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 5
    for name, scaled, fold, arguments in (
        ("average", x * 0.3, "fold_activation_norm_scaling_factor", (0.3,)),
        (
            "whitening",
            (x - 3) @ M,
            "fold_activation_whitening",
            (3 * torch.ones(24), M, M.inverse()),
        ),
    ):
        sae = training_sae(rescale_acts_by_decoder_norm=rescale)
        step = {"coefficients": {}, "dead_neuron_mask": None, "n_training_steps": 5}
        sae.training_forward_pass(TrainStepInput(sae_in=scaled, is_logging_step=False, **step))
        getattr(sae, fold)(*arguments)
        sae.save_inference_model(tmp_path / name)
        saved = SAE.load_from_disk(tmp_path / name)
        kept = saved.calibration
        again = calibrate(saved, x, progress=False)
        assert kept.thresholds == pytest.approx(again.thresholds, rel=1e-3)
        assert kept.variance == pytest.approx(again.variance, rel=1e-3)


def test_a_step_takes_the_calibration_of_former_weights_away(tmp_path: Path, caplog: Any) -> None:
    sae = training_sae()
    calibrate(sae, activations_for(sae, N), progress=False)
    step = {"coefficients": {}, "dead_neuron_mask": None, "n_training_steps": 5}
    x = activations_for(sae, 300)
    sae.training_forward_pass(TrainStepInput(sae_in=x, is_logging_step=False, **step))
    assert sae.cfg.calibration is None
    sae.save_inference_model(tmp_path / "few")
    assert "Saved without thresholds" in caplog.text
    assert "300 activations are too few" in caplog.text
    assert SAE.load_from_disk(tmp_path / "few").cfg.calibration is None
    sae.training_forward_pass(TrainStepInput(sae_in=x, is_logging_step=False, **step))
    sae.save_inference_model(tmp_path / "enough")
    saved = SAE.load_from_disk(tmp_path / "enough")
    assert saved.calibration.tokens == 600
    with joined_heads(saved), saved.using_budget(MeanBudget(4)):
        assert mean_active(saved.encode(x)) == pytest.approx(4, rel=0.01)
