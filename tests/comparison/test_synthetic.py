"""Ground truth: what the synthetic model is, and that figures are SAELens' own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.synthetic import SyntheticModel, eval_sae_on_synthetic_data

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig, MeanBudget, calibrate
from hsae_lens.comparison.synthetic import (
    OF_JUDGING,
    SyntheticSettings,
    activations,
    seeded,
    synthetic_model,
    truth_at,
)

D_IN, FEATURES = 64, 96
SETTINGS = SyntheticSettings(d_in=D_IN, n_features=FEATURES, true_l0=5.0)
N = 3000


@pytest.fixture(scope="module")
def model() -> SyntheticModel:
    return synthetic_model(SETTINGS)


def know_all(sae: Any, model: SyntheticModel) -> Any:
    """The dictionary is the true one, and the encoder reads it off above the interference."""
    true = model.feature_dict.feature_vectors.detach()
    with torch.no_grad():
        sae.W_dec.copy_(true)
        sae.W_enc.copy_(true.T)
        sae.b_dec.copy_(model.feature_dict.bias)
        sae.b_enc.copy_(-true @ model.feature_dict.bias)
    return sae


@pytest.fixture
def knowing(model: SyntheticModel) -> HierarchicalTopKSAE:
    cfg = HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=FEATURES, k=12)
    return know_all(HierarchicalTopKSAE(cfg), model)


def test_two_models_of_the_same_settings_are_the_same(model: SyntheticModel) -> None:
    again = synthetic_model(SETTINGS)
    assert torch.equal(activations(model, 5000, 3), activations(again, 5000, 3))
    other = SyntheticModel(replace(SETTINGS, seed=1).config(max_prob=0.5))
    assert not torch.equal(model.feature_dict.feature_vectors, other.feature_dict.feature_vectors)


def test_features_are_those_that_saelens_makes(model: SyntheticModel) -> None:
    by_saelens = SyntheticModel(SETTINGS.config(max_prob=0.5)).feature_dict
    assert torch.equal(model.feature_dict.feature_vectors, by_saelens.feature_vectors)
    assert torch.equal(model.feature_dict.bias, by_saelens.bias)


def test_samples_of_a_seed_are_the_same_whatever_was_drawn_before(model: SyntheticModel) -> None:
    first = activations(model, 5000, 1)
    before = torch.random.get_rng_state()
    assert torch.equal(activations(model, 5000, 1), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (5000, D_IN)
    assert not torch.equal(activations(model, 5000, 2), first)


@pytest.mark.parametrize(("correlation", "depth"), [(0.0, 0), (0.1, 2)])
def test_as_many_features_fire_as_asked(correlation: float, depth: int) -> None:
    model = synthetic_model(SyntheticSettings(32, FEATURES, 5.0, correlation, depth))
    with seeded(9):
        fires = model.activation_generator.sample(20_000) > 0
    assert fires.sum(-1).float().mean().item() == pytest.approx(5.0, rel=0.03)


def test_children_fire_with_their_parent_alone_and_one_at_a_time(model: SyntheticModel) -> None:
    with seeded(9):
        fires = model.activation_generator.sample(5000) > 0
    assert model.hierarchy is not None
    assert len(model.hierarchy.roots) == FEATURES * 2 // 3 // 21
    for root in model.hierarchy.roots:
        children = fires[:, [child.feature_index for child in root.children]]
        assert children.any()
        assert not (children.any(-1) & ~fires[:, root.feature_index]).any()
        assert children.sum(-1).max() == 1


def test_correlated_features_fire_together_more_often_than_by_chance() -> None:
    def spread(correlation: float) -> float:
        model = synthetic_model(SyntheticSettings(8, 32, 4.0, correlation, depth=0))
        with seeded(9):
            fires = (model.activation_generator.sample(20_000) > 0).double()
        return (torch.corrcoef(fires.T) - torch.eye(32)).std().item()

    assert spread(0.0) < 0.01 < 0.03 < spread(0.15)


def test_the_true_dictionary_is_found_at_every_budget(
    knowing: HierarchicalTopKSAE, model: SyntheticModel
) -> None:
    table = truth_at(knowing, model, [1, 5, 12], N)
    assert table["k"].tolist() == [1, 5, 12]
    assert table["mcc"].tolist() == pytest.approx([1.0] * 3)
    assert table["mcc_used"].tolist() == pytest.approx([1.0] * 3)
    assert table["uniqueness"].tolist() == [1.0] * 3
    assert table["l0"].tolist() == pytest.approx([1, 5, 12], rel=0.01)
    assert table["true_l0"].tolist() == pytest.approx([5] * 3, rel=0.05)


def test_more_latents_recall_more_and_are_less_precise(
    knowing: HierarchicalTopKSAE, model: SyntheticModel
) -> None:
    table = truth_at(knowing, model, [1, 3, 12], N)
    assert table["recall"].is_monotonic_increasing
    assert table["recall"].iloc[-1] > 0.8 > 0.4 > table["recall"].iloc[0]
    assert table["precision"].iloc[-1] < table["precision"].iloc[0]
    assert table["dead"].iloc[0] >= table["dead"].iloc[-1]


def test_a_random_dictionary_finds_little(
    knowing: HierarchicalTopKSAE, model: SyntheticModel
) -> None:
    with torch.no_grad():
        # Seed 0 is the model's too: were it drawn with it as it stands, this would be the answer.
        knowing.W_dec.copy_(torch.randn(FEATURES, D_IN, generator=torch.Generator().manual_seed(0)))
    row = truth_at(knowing, model, [5], N).iloc[0]
    assert row["mcc"] < 0.4
    assert row["f1"] < 0.2


def test_only_latents_that_are_used_count_in_mcc_used(
    knowing: HierarchicalTopKSAE, model: SyntheticModel
) -> None:
    with torch.no_grad():
        knowing.b_enc[: FEATURES // 2] = -1e3
        knowing.W_dec[: FEATURES // 2] = torch.randn(FEATURES // 2, D_IN)
    row = truth_at(knowing, model, [12], N).iloc[0]
    assert row["dead"] == pytest.approx(0.5)
    assert row["mcc_used"] == pytest.approx(1.0)
    assert row["mcc"] < 0.9


def test_figures_are_saelens_own_at_each_budget(
    knowing: HierarchicalTopKSAE, model: SyntheticModel
) -> None:
    calibrate(knowing, activations(model, 2000, 1), progress=False)
    budgets = [2, 8, MeanBudget(4)]
    table = truth_at(knowing, model, budgets, N, seed=7)
    assert table[["k", "rule", "target"]].to_numpy().tolist() == [
        [2, "fixed", 2],
        [8, "fixed", 8],
        [4, "mean", 4],
    ]
    stocks = [knowing.at_k(2), knowing.at_k(8), knowing.at_mean_k(4)]
    for stock, row in zip(stocks, table.to_dict("records"), strict=True):
        assert_same(row, by_saelens(stock, model, 7))


def by_saelens(sae: Any, model: SyntheticModel, seed: int) -> dict[str, float]:
    with seeded(OF_JUDGING + seed):
        found = eval_sae_on_synthetic_data(sae, model.feature_dict, model.activation_generator, N)
    return {
        "mcc": found.mcc,
        "precision": found.classification.precision,
        "recall": found.classification.recall,
        "f1": found.classification.f1_score,
        "uniqueness": found.uniqueness,
        "explained_variance": found.explained_variance,
        "l0": found.sae_l0,
        "true_l0": found.true_l0,
        "dead": found.dead_latents / sae.cfg.d_sae,
    }


def assert_same(row: dict[Any, Any], figures: dict[str, float]) -> None:
    assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-4)


def stock_topk(model: SyntheticModel) -> TopKSAE:
    return know_all(TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=FEATURES, k=4)), model)


def stock_jumprelu(model: SyntheticModel) -> JumpReLUSAE:
    sae = know_all(JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=FEATURES)), model)
    with torch.no_grad():
        sae.threshold.fill_(2.5)
    return sae


@pytest.mark.parametrize(
    ("make", "budget"),
    [(stock_topk, 4), (stock_jumprelu, MeanBudget(5)), (stock_jumprelu, FEATURES)],
)
def test_a_stock_sae_is_judged_at_its_own_budget(
    make: Any, budget: Any, model: SyntheticModel
) -> None:
    sae = make(model)
    (row,) = truth_at(sae, model, [budget], N).to_dict("records")
    assert row["k"] == (budget if isinstance(budget, int) else budget.k)
    assert_same(row, by_saelens(sae, model, 0))


@pytest.mark.parametrize(
    ("make", "budgets", "says"),
    [
        (stock_topk, [5], "'topk' SAE has one budget, 4, .* asked for 5"),
        (stock_topk, [MeanBudget(4)], "asked for mean-4"),
        (stock_topk, [2, 4], "asked for 2, 4"),
        (stock_topk, [], "There are no budgets"),
        (stock_jumprelu, [5], "'jumprelu' SAE has one budget, 96, .* asked for 5"),
    ],
)
def test_budgets_that_a_stock_sae_has_not_are_refused(
    make: Any, budgets: list[Any], says: str, model: SyntheticModel
) -> None:
    with pytest.raises(ValueError, match=says):
        truth_at(make(model), model, budgets, N)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"d_in": 0}, "d_in must be 1 or more, got 0"),
        ({"n_features": 1}, "n_features must be 2 or more"),
        ({"n_features": 96.5}, "n_features must be a whole number"),
        ({"depth": -1}, "depth must be 0 or more"),
        ({"correlation": 0.2}, "correlation must be at least 0 and below 0.2"),
        ({"correlation": float("nan")}, "correlation must be at least 0"),
        ({"depth": 3}, "A tree of depth 3 has 85 features, more than two thirds of 96"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SyntheticSettings(**{"d_in": D_IN, "n_features": FEATURES, "true_l0": 5.0, **settings})


@pytest.mark.parametrize("true_l0", [1e-3, 60.0, float("nan")])
def test_a_true_l0_that_no_firing_gives_is_refused(true_l0: float) -> None:
    with pytest.raises(ValueError, match=r"true_l0 .* cannot be had: 96 features at depth 2 fire"):
        synthetic_model(SyntheticSettings(D_IN, FEATURES, true_l0))


def test_what_does_not_fit_is_refused(knowing: HierarchicalTopKSAE, model: SyntheticModel) -> None:
    wider = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=D_IN + 1, d_sae=FEATURES, k=4))
    with pytest.raises(ValueError, match="reads activations of width 65, .* makes 64"):
        truth_at(wider, model, [4], N)
    with pytest.raises(ValueError, match=r"outside 1\.\.12"):
        truth_at(knowing, model, [13], N)
    with pytest.raises(ValueError, match="has no thresholds for mean budgets"):
        truth_at(knowing, model, [MeanBudget(4)], N)
    with pytest.raises(ValueError, match="n_samples must be 1 or more, got 0"):
        truth_at(knowing, model, [4], 0)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        activations(model, 0, 0)
    with pytest.raises(ValueError, match="The SAE is on meta, the synthetic model on the CPU"):
        truth_at(knowing.to("meta"), model, [4], N)


def test_an_sae_is_not_judged_by_samples_to_train_on(
    knowing: HierarchicalTopKSAE, model: SyntheticModel
) -> None:
    seen: list[torch.Tensor] = []
    with knowing.hooks(fwd_hooks=[("hook_sae_input", lambda x, hook: seen.append(x.clone()))]):
        truth_at(knowing, model, [4], 500, seed=3)
    judged, trained_on = torch.cat(seen), activations(model, 500, 3)
    assert len(judged) == 500
    for shift in (0, model.feature_dict.bias):  # which the SAE may have subtracted by then
        nearest = torch.cdist(judged + shift, trained_on).min(-1).values
        assert nearest.median() > 0.5  # not min: where nothing fires, samples are the bias alone
