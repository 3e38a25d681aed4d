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
    plot_circuit,
    plot_curves,
)


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
