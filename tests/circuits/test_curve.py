"""Faithfulness, completeness and nesting of circuits of growing size."""

from __future__ import annotations

from typing import Any, get_args

import pandas as pd
import pytest
from helpers.circuits import (
    BUDGETS,
    BY_TOKEN,
    CLOSE,
    HOOKS,
    calibrated,
    dictionary,
    variant_on_model,
)
from helpers.variants import VARIANTS

from hsae_lens.circuits import (
    Ablator,
    Prompts,
    areas,
    attribute_budgets,
    circuit_curve,
    nesting,
    patch_nodes,
    shown_nodes,
)
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.pairs import TokenizedTask


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_faithful_and_nothing_is_not(
    model: Any, task: TokenizedTask, variant: str
) -> None:
    """Of an SAE of any kind, with error nodes as nodes like others; completeness mirrors it."""
    saes = calibrated(model, dictionary(model, HOOKS[0], task.clean), variant_on_model(variant))
    found = attribute_budgets(model, saes, task, [*BUDGETS, *BY_TOKEN], progress=False)
    curve = circuit_curve(
        model, saes, found, task, sizes=[0, 1, 4, 10_000], errors="default", progress=False
    )
    near = CLOSE[saes[1].dtype]
    budgets = curve.groupby(["k", "rule", "target"], sort=False)
    assert list(budgets.groups) == [
        *((k, "fixed", k) for k in BUDGETS),
        (2, "mean", 2),
        (6.5, "mean", 6.5),
        (8, "error", 0.5),
        (8, "error", 0.8),
    ]
    for _, rows in budgets:
        first, last = rows.iloc[0], rows.iloc[-1]
        assert (first["faithfulness"], last["completeness"]) == pytest.approx((0, 0), abs=near)
        assert (last["faithfulness"], first["completeness"]) == pytest.approx((1, 1), abs=near)
    table = areas(curve)
    assert list(zip(table["k"], table["rule"], table["target"], strict=True)) == list(
        budgets.groups
    )


@pytest.mark.parametrize("errors", ["keep", "remove"])
def test_error_nodes_are_in_every_circuit_or_in_none(
    model: Any, saes: Any, task: TokenizedTask, errors: Any
) -> None:
    found = attribute_budgets(model, saes, task, BUDGETS, progress=False)
    curve = circuit_curve(
        model, saes, found, task, sizes=[0, 10_000], errors=errors, progress=False
    )
    for _, rows in curve.groupby("k"):
        first, last = rows.iloc[0], rows.iloc[-1]
        if errors == "keep":
            assert last["faithfulness"] == pytest.approx(1, abs=1e-9)
            assert last["completeness"] == pytest.approx(0, abs=1e-9)
            assert abs(first["faithfulness"]) > 1e-6
        else:
            assert first["faithfulness"] == pytest.approx(0, abs=1e-9)
            assert first["completeness"] == pytest.approx(1, abs=1e-9)
            assert abs(last["faithfulness"] - 1) > 1e-6


@pytest.mark.parametrize("replace", get_args(Replacement))
def test_circuits_are_judged_as_they_were_found(
    model: Any, saes: Any, task: TokenizedTask, replace: Replacement
) -> None:
    """What attribution predicts for the largest nodes is about what ablation then measures."""
    sae = saes[1]
    found = attribute_budgets(model, sae, task, [8], replace=replace, steps=16, progress=False)
    curve = circuit_curve(model, sae, found, task, sizes=[0, 4], progress=False)
    ablator = Ablator(model, sae, task, replace)
    of_nothing = ablator(8, ablator.empty_circuit())
    assert curve["metric_empty"].iloc[0] == pytest.approx(of_nothing, abs=1e-12)
    nodes = found.nodes(8).head(6)
    exact = patch_nodes(ablator, nodes, 8, progress=False)["exact"]
    assert (exact - nodes["effect"]).abs().max() < 0.3 * nodes["effect"].abs().max()
    assert exact.corr(nodes["effect"]) > 0.9


def test_nodes_and_circuits_over_all_positions(model: Any, saes: Any, task: Any) -> None:
    found = attribute_budgets(model, saes, task, [8], progress=False)
    joined = found.nodes(8, by_position=False)
    summed = found.nodes(8).groupby(["site", "latent"])["effect"].sum()
    for row in joined.head(10).itertuples():
        assert summed[row.site, row.latent] == pytest.approx(row.effect, abs=1e-12)
    curve = circuit_curve(
        model, saes, found, task, sizes=[1, 10_000], errors="default", by_position=False,
        progress=False,
    )  # fmt: skip
    assert curve["faithfulness"].iloc[-1] == pytest.approx(1, abs=1e-9)


def test_areas_are_of_one_width() -> None:
    curve = pd.DataFrame(
        {
            "k": [1, 1, 2, 2, 2],
            "nodes": [1, 2, 1, 2, 4],
            "faithfulness": [0.0, 1.0, 0.0, 1.0, 1.0],
            "completeness": [1.0, 0.0, 1.0, 1.0, 1.0],
        }
    )
    table = areas(curve).set_index("k")
    assert table.loc[1, "faithfulness"] == pytest.approx(0.75)
    assert table.loc[2, "faithfulness"] == pytest.approx(0.75)
    assert table.loc[1, "completeness"] == pytest.approx(0.25)
    both = pd.concat([curve.assign(sae="a"), curve[curve["nodes"] < 4].assign(sae="b")])
    by = areas(both).set_index(["sae", "k"])["faithfulness"]
    assert by["a", 2] == by["b", 2] == pytest.approx(0.75)  # over the same sizes
    with pytest.raises(ValueError, match="at least two sizes"):
        areas(curve[curve["nodes"] == 1])


def test_circuits_nest_when_effects_do_not_depend_on_the_budget(
    model: Any, saes: Any, task: Any
) -> None:
    one = task[:1]  # a single prompt: no averaging over pairs
    found = attribute_budgets(model, saes, one, BUDGETS, replace="zero", progress=False)
    assert list(nesting(found).columns) == ["k", "larger", "latents", "shared"]
    assert (nesting(found)["shared"] == 1).all()


def test_budgets_nest_in_larger_ones_of_their_rule(model: Any, task: TokenizedTask) -> None:
    sae = calibrated(model, dictionary(model, HOOKS[0], task.clean))
    found = attribute_budgets(
        model, sae, task[:1], [*BUDGETS, *BY_TOKEN], replace="zero", progress=False
    )
    table = nesting(found)
    pairs = table[["k", "rule", "target", "larger"]].itertuples(index=False, name=None)
    assert list(pairs) == [
        (1, "fixed", 1, 3),
        (1, "fixed", 1, 8),
        (3, "fixed", 3, 8),
        (2, "mean", 2, 6.5),
        (8, "error", 0.8, 0.5),  # the smaller error takes more latents
    ]
    assert (table["latents"] > 0).all()
    assert (table["shared"] == 1).all()


def test_shown_nodes_tell_rules_apart(model: Any, task: TokenizedTask) -> None:
    sae = calibrated(model, dictionary(model, HOOKS[0], task.clean))
    found = attribute_budgets(model, sae, task, [*BUDGETS, *BY_TOKEN], progress=False)
    nodes = shown_nodes(found, task, model.tokenizer)
    assert list(nodes.columns[:3]) == ["k", "rule", "target"]
    for k, (_, rows) in zip(found.budgets, nodes.groupby(["rule", "target"], sort=False),
                            strict=True):  # fmt: skip
        all_nodes = found.nodes(k)
        assert rows["effect"].abs().max() == all_nodes["effect"].abs().max()
        assert (rows["share"].abs() >= 0.01).all()
    enters = nodes.drop_duplicates(["rule", "position", "latent"])
    of_fixed = enters[enters["rule"] == "fixed"]  # ascending: the first row is the smallest budget
    assert (of_fixed["first_target"] == of_fixed["target"]).all()
    assert (of_fixed["first_target"] == of_fixed["first_k"]).all()
    by_error = nodes[nodes["rule"] == "error"].drop_duplicates(["position", "latent"], keep="last")
    assert (by_error["first_target"] == by_error["target"]).all()
    assert set(by_error["first_target"]) == {0.5, 0.8}
    plain = attribute_budgets(model, sae, task, BUDGETS, progress=False)
    fixed = shown_nodes(plain, task, model.tokenizer)
    pd.testing.assert_frame_equal(
        fixed, nodes[nodes["rule"] == "fixed"][fixed.columns].reset_index(drop=True),
        check_dtype=False,
    )  # fmt: skip


def test_a_curve_of_other_nodes_is_refused(model: Any, saes: Any, task: TokenizedTask) -> None:
    shorter = Prompts(task.clean[:, 2:], task.metric)
    found = attribute_budgets(model, saes, shorter, [8], progress=False)
    with pytest.raises(ValueError, match="attributed on 7 tokens, judged on 9"):
        circuit_curve(model, saes, found, task, replace="resample")
    with pytest.raises(ValueError, match="The attribution is of"):
        circuit_curve(model, saes[:1], found, task)
