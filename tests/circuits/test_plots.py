"""Circuits as pictures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from helpers.circuits import HOOKS

from hsae_lens.circuits.plots import (
    circuit_figure,
    circuit_svg,
    curve_svg,
    curves_figure,
    plot_circuit,
    plot_curves,
)


def test_curves_tell_rules_apart() -> None:
    """A mean budget has the colour of the fixed one of its size; error targets share their k."""
    budgets = {"k": [8, 8, 40, 40], "rule": ["fixed", "mean", "error", "error"],
               "target": [8, 8, 0.5, 0.2]}  # fmt: skip
    rows = pd.DataFrame({**budgets, "faithfulness": 0.5, "completeness": 0.5})
    curve = pd.concat([rows.assign(sae="ours", nodes=n) for n in (1, 2)])
    axes = curves_figure(curve).axes[0]
    drawn = [line for line in axes.get_lines() if list(line.get_xdata()) == [1, 2]]
    assert len(drawn) == 4
    fixed, mean = drawn[:2]
    assert fixed.get_color() == mean.get_color()
    assert len({line.get_color() for line in drawn}) == 3
    assert [line.get_marker() for line in drawn] == [".", "^", "x", "x"]
    assert len({line.get_linestyle() for line in drawn}) == 1
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["ours", "by every token", "on average", "by error",
                      "k = 8", "error 0.2", "error 0.5"]  # fmt: skip
    # As `hsae circuits` calls the SAEs.
    labelled = curve.assign(sae=curve["rule"].map({"fixed": "ours", "mean": "ours, on average",
                                                   "error": "ours, by error"}))  # fmt: skip
    assert curves_figure(labelled).axes[0].get_legend_handles_labels()[1] == labels
    plain = rows.head(1)[["k", "faithfulness", "completeness"]].assign(sae="ours", nodes=1)
    assert curves_figure(plain).axes[0].get_legend_handles_labels()[1] == ["ours", "k = 8"]


def test_a_graph_is_of_one_rule() -> None:
    nodes = pd.DataFrame({"k": 40, "rule": "error", "target": [0.2, 0.2, 0.5], "site": HOOKS[0],
                          "position": 1, "token": "a", "latent": [11, 22, 11],
                          "effect": [1.0, 0.5, 2.0], "share": 0.5, "first_k": 40,
                          "first_target": [0.5, 0.2, 0.5]})  # fmt: skip
    other = nodes.assign(rule="mean", latent=33)
    figure = circuit_figure(pd.concat([nodes, other]), ["<bos>", "a"], ["b", "c"])
    assert [text.get_text() for text in figure.axes[0].texts][:2] == ["11", "22"]
    assert "33" not in [text.get_text() for text in figure.axes[0].texts]
    sizes = [dots.get_sizes()[0] for dots in figure.axes[0].collections[:2]]
    assert sizes == [400, 230]  # as at the smallest error, which has most latents
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["from error 0.2", "from error 0.5"]


@pytest.mark.parametrize("upper_first", [True, False])
def test_a_graph_stands_the_model_s_way_up(upper_first: bool) -> None:
    """Whichever site contributes more."""
    nodes = pd.DataFrame({"k": 8, "site": HOOKS, "position": 1, "token": "a", "latent": [11, 22],
                          "effect": [1.0, 2.0], "share": 0.5, "first_k": 8})  # fmt: skip
    figure = circuit_figure(nodes[::-1] if upper_first else nodes, ["<bos>", "a"], ["b", "c"])
    heights = {text.get_text(): text.xy[1] for text in figure.axes[0].texts}
    assert heights["11"] < heights["22"]
    assert heights[HOOKS[0]] < heights[HOOKS[1]]
    # Only the last site's nodes lead to the answer.
    (line,) = figure.axes[0].get_lines()
    assert line.get_ydata()[0] == heights["22"]


def test_any_token_can_be_drawn(tmp_path: Path) -> None:
    """matplotlib takes what stands between two dollars for a formula."""
    token, name = r"$\foo$_^{", "runs/$a_$"
    nodes = pd.DataFrame({"k": 8, "site": HOOKS, "position": [0, 1], "token": token,
                          "latent": 1, "effect": 1.0, "share": 0.5, "first_k": 8})  # fmt: skip
    plot_circuit(nodes, [token, token], [token, token], tmp_path / "graph.png")
    assert "foo" in circuit_svg(nodes, [token, token], [token, token])
    curve = pd.DataFrame({"sae": name, "k": 8, "nodes": [1, 2], "faithfulness": [0.1, 0.2],
                          "completeness": [0.9, 0.8]})  # fmt: skip
    plot_curves(curve, tmp_path / "curve.png")
    assert name in curve_svg(curve, "faithfulness")
