"""Circuits as pictures: tables in, figures out; computes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hsae_lens._util.columns import LABELS, axis_label
from hsae_lens._util.figures import (
    COLOURS,
    figure_svg,
    finish_axes,
    legend_below,
    plain_text,
    save_png,
)
from hsae_lens._util.tables import RULE_NAMES, with_rules
from hsae_lens.circuits.metrics import CIRCUIT_METRICS
from hsae_lens.circuits.sites import ERROR, model_order

STYLES = ["-", "--", ":", "-."]

MARKERS = {"fixed": ".", "mean": "^", "error": "x"}

BUDGETS = {"fixed": "k =", "mean": "mean k =", "error": "error"}

POSITIVE, NEGATIVE = "#0072B2", "#D55E00"

NODES_DRAWN = 10  # nodes drawn at one token of one site


def plot_curves(curve: pd.DataFrame, path: Path) -> None:
    """:func:`curves_figure` as PNG."""
    save_png(curves_figure(curve), path)


def curve_svg(curve: pd.DataFrame, measure: str) -> str:
    """One panel of :func:`curves_figure` as SVG for a page."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    _curve(figure.subplots(), curve, measure)
    legend_below(figure, columns=2)
    return figure_svg(figure)


def curves_figure(curve: pd.DataFrame) -> Figure:
    """Faithfulness and completeness against the number of nodes, by SAE (line) and budget (colour).

    Mean budgets and error targets have markers of their own, and an SAE that is there under a label
    for each rule one line style.

    Args:
        curve: columns ``sae``, ``k``, ``nodes``, ``faithfulness``, ``completeness``; and ``rule``
            and ``target``, if not all budgets are fixed.
    """
    figure = Figure(figsize=(5 * len(CIRCUIT_METRICS), 4.8), layout="constrained")
    panels = figure.subplots(1, len(CIRCUIT_METRICS))
    for axes, measure in zip(panels, CIRCUIT_METRICS, strict=True):
        _curve(axes, curve, measure)
    legend_below(figure, columns=4)
    return figure


def _curve(axes: Any, curve: pd.DataFrame, measure: str) -> None:
    curve = with_rules(curve)
    # A mean budget has the colour of the fixed one of its size.
    curve = curve.assign(
        error=curve["rule"] == "error",
        sae=[str(sae).removesuffix(RULE_NAMES[rule])
             for sae, rule in zip(curve["sae"], curve["rule"], strict=True)],
    )  # fmt: skip
    budgets = _cycled(sorted(set(zip(curve["error"], curve["target"], strict=True))), COLOURS)
    styles = _cycled(curve["sae"].unique(), STYLES)
    lines = curve[curve["nodes"] > 0].groupby(["sae", "rule", "error", "target"], sort=False)
    for (sae, rule, *budget), rows in lines:
        axes.plot(rows["nodes"], rows[measure], styles[sae], marker=MARKERS[str(rule)],
                  color=budgets[tuple(budget)])  # fmt: skip
    label = f"{measure.capitalize()}: {LABELS[measure]}"
    finish_axes(axes, axis_label("nodes"), label, curve["nodes"].max(), every=2)
    axes.set_ylim(min(-0.1, curve[measure].clip(-0.5).min() - 0.03), 1.15)
    axes.axhline(1 if measure == "faithfulness" else 0, color="#777777", linewidth=1)
    for sae, style in styles.items():
        axes.plot([], [], style, color="#444444", label=plain_text(sae))
    rules = [rule for rule in MARKERS if rule in set(curve["rule"])]
    for rule in rules if rules != ["fixed"] else []:
        label = RULE_NAMES[rule].removeprefix(", ") or "by every token"
        axes.plot([], [], " ", marker=MARKERS[rule], color="#444444", label=label)
    for (error, target), colour in budgets.items():
        name = BUDGETS["error" if error else "fixed"]
        axes.plot([], [], color=colour, linewidth=4, label=f"{name} {target:g}")


def _cycled(keys: Iterable[Any], values: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(keys, itertools.cycle(values), strict=False))


def plot_circuit(
    nodes: pd.DataFrame,
    tokens: Sequence[str],
    answer: Sequence[str],
    path: Path,
    edges: pd.DataFrame | None = None,
) -> None:
    """:func:`circuit_figure` as PNG."""
    save_png(circuit_figure(nodes, tokens, answer, edges), path)


def circuit_svg(
    nodes: pd.DataFrame,
    tokens: Sequence[str],
    answer: Sequence[str],
    edges: pd.DataFrame | None = None,
) -> str:
    """:func:`circuit_figure` as SVG for a page."""
    return figure_svg(circuit_figure(nodes, tokens, answer, edges))


def circuit_figure(
    nodes: pd.DataFrame,
    tokens: Sequence[str],
    answer: Sequence[str],
    edges: pd.DataFrame | None = None,
) -> Figure:
    """The circuit as a graph: nodes above their tokens, coloured by the budget they enter at.

    Lines lead to the answer, blue for and orange against it, as wide as the node's contribution at
    the largest budget it has; with ``edges``, also between sites.

    Args:
        nodes: of :func:`shown_nodes`, at least ``k``, ``site``, ``position``, ``latent``,
            ``effect``, ``first_k``; with budgets of several rules those of the first are drawn.
            Sites are drawn in the model's order, the last one uppermost.
        tokens: text of each position.  answer: the right and the wrong one.
    """
    rule = "fixed"
    if "rule" in nodes:
        rule = nodes["rule"].iloc[0]
        nodes = nodes[nodes["rule"] == rule]
        nodes = nodes.assign(k=nodes["target"], first_k=nodes["first_target"])
    by_size = nodes.sort_values("k", ascending=rule != "error")  # a small error takes many latents
    last = by_size.drop_duplicates(["site", "position", "latent"], keep="last")
    sites = sorted(nodes["site"].unique(), key=model_order)
    drawn, middles, width = _places(last, sites)
    height = 2.0 * len(sites)
    figure = Figure((max(6.5, 0.72 * width + 1), 1.5 * height + 1.6), layout="constrained")
    axes = figure.subplots()
    colours = _cycled(sorted(nodes["first_k"].unique()), COLOURS)
    output, largest = ((width - 1) / 2, height), last["effect"].abs().max()
    for (site, _, latent), (row, x, y) in drawn.items():
        if site == sites[-1]:
            _line(axes, (x, y), output, row["effect"] / largest)
        colour = "#bbbbbb" if latent == ERROR else colours[row["first_k"]]
        axes.scatter([x], [y], s=60 + 340 * abs(row["effect"]) / largest, color=colour,
                     edgecolors="#1c2430", linewidths=0.8, zorder=3)  # fmt: skip
        name = "error" if latent == ERROR else str(latent)
        axes.annotate(name, (x, y), (0, -18), textcoords="offset points", ha="center", fontsize=8)
    for edge in [] if edges is None else edges.to_dict("records"):
        start = drawn.get((edge["site"], edge["position"], edge["latent"]))
        end = drawn.get((edge["to_site"], edge["to_position"], edge["to_latent"]))
        if start and end and edges is not None:
            _line(axes, start[1:], end[1:], edge["effect"] / edges["effect"].abs().max())
    right, wrong = (plain_text(repr(word.strip())) for word in answer)
    axes.annotate(f"{right} rather than {wrong}", output, ha="center", va="center", fontsize=10,
                  bbox={"boxstyle": "round", "fc": "white"})  # fmt: skip
    for k, colour in colours.items():
        label = f"from {BUDGETS[rule]} {k:g}"
        axes.scatter([], [], s=90, color=colour, edgecolors="#1c2430", label=label)
    if (last["latent"] == ERROR).any():
        axes.scatter([], [], s=90, color="#bbbbbb", edgecolors="#1c2430", label="error node")
    axes.set_xticks(
        list(middles.values()), [f"{plain_text(tokens[p].strip())}\n({p})" for p in middles]
    )
    axes.set_xlim(-0.7, max(width - 0.3, 6))
    axes.set_ylim(-0.7, height + 0.3)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    for n, site in enumerate(sites):
        axes.annotate(plain_text(site), (-0.65, 2.0 * n - 0.55), fontsize=8, color="#5b6573")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


Places = dict[tuple[str, int, int], tuple[dict[Hashable, Any], float, float]]


def _places(nodes: pd.DataFrame, sites: list[str]) -> tuple[Places, dict[int, float], float]:
    """Each drawn node with its x and y, the middle of each position, and the width of it all.

    A position takes as much room as its widest site; a node's largest come first.
    """
    places: Places = {}
    middles: dict[int, float] = {}
    left = 0.0
    for position, here in nodes.groupby("position"):
        widest = min(NODES_DRAWN, int(here["site"].value_counts().max()))
        for n, site in enumerate(sites):
            rows = here[here["site"] == site].sort_values("effect", key=abs, ascending=False)
            for m, row in enumerate(rows.head(NODES_DRAWN).to_dict("records")):
                place = (row, left + m, 2.0 * n)
                places[site, int(row["position"]), int(row["latent"])] = place
        middles[int(str(position))] = left + (widest - 1) / 2
        left += widest + 0.8
    return places, middles, left - 0.8


def _line(axes: Any, start: tuple[float, float], end: tuple[float, float], weight: float) -> None:
    axes.plot(
        *zip(start, end, strict=True),
        color=POSITIVE if weight > 0 else NEGATIVE,
        linewidth=0.4 + 5 * abs(weight),
        alpha=0.25 + 0.5 * abs(weight),
        zorder=1,
    )
