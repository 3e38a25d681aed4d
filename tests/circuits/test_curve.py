"""Faithfulness, completeness and nesting of circuits of growing size."""

from __future__ import annotations

from typing import Any, get_args

import pandas as pd
import pytest
from helpers.circuits import BUDGETS, CLOSE, HOOKS, dictionary, variant_on_model
from helpers.variants import VARIANTS

from hsae_lens.circuits import (
    Ablator,
    Prompts,
    areas,
    attribute_budgets,
    circuit_curve,
    nesting,
    patch_nodes,
)
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.pairs import TokenizedTask


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_faithful_and_nothing_is_not(
    model: Any, task: TokenizedTask, variant: str
) -> None:
    """Of an SAE of any kind, with error nodes as nodes like others; completeness mirrors it."""
    saes = [dictionary(model, HOOKS[0], task.clean), variant_on_model(variant)]
    found = attribute_budgets(model, saes, task, BUDGETS, progress=False)
    curve = circuit_curve(
        model, saes, found, task, sizes=[0, 1, 4, 10_000], errors="default", progress=False
    )
    near = CLOSE[saes[1].dtype]
    for _, rows in curve.groupby("k"):
        first, last = rows.iloc[0], rows.iloc[-1]
        assert (first["faithfulness"], last["completeness"]) == pytest.approx((0, 0), abs=near)
        assert (last["faithfulness"], first["completeness"]) == pytest.approx((1, 1), abs=near)
    assert set(areas(curve)["k"]) == set(BUDGETS)


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
    assert (nesting(found)["shared"] == 1).all()


def test_a_curve_of_other_nodes_is_refused(model: Any, saes: Any, task: TokenizedTask) -> None:
    shorter = Prompts(task.clean[:, 2:], task.metric)
    found = attribute_budgets(model, saes, shorter, [8], progress=False)
    with pytest.raises(ValueError, match="attributed on 7 tokens, judged on 9"):
        circuit_curve(model, saes, found, task, replace="resample")
    with pytest.raises(ValueError, match="The attribution is of"):
        circuit_curve(model, saes[:1], found, task)
