"""The report's pictures and ``frontier.png``, from tables; computes nothing."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hsae_lens._util.columns import QUALITIES, axis_label
from hsae_lens._util.figures import (
    BUDGET_AXIS,
    COLOURS,
    MEAN_AXIS,
    each_curve,
    figure_svg,
    finish_axes,
    legend_below,
    panel,
    plain_text,
    save_png,
)
from hsae_lens._util.tables import rules_of


def plot_frontier(table: pd.DataFrame, path: str | Path, title: str) -> Path:
    """Explained variance and recovered cross-entropy against the budget, a curve per SAE and rule.

    Args:
        table: columns ``sae``, ``k``, ``explained_variance`` and ``ce_score``; with
            ``…_se`` columns the curves have bands of two standard errors.
        path: the PNG to write, whole or not at all.
    """
    path = Path(path)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(plain_text(title, 100), fontsize=12)
    for axes, quality in zip(figure.subplots(1, 2), QUALITIES, strict=True):
        _draw_frontier(axes, table, quality)
    _make_room(figure, table)
    legend_below(figure)
    save_png(figure, path)
    return path


def frontier_svg(table: pd.DataFrame, quality: str, label: str = "") -> str:
    """One panel of :func:`plot_frontier` as SVG for a page; with a label, of any other column."""
    figure, axes = panel()
    _draw_frontier(axes, table, quality, label)
    _make_room(figure, table)
    legend_below(figure)
    return figure_svg(figure)


def worth_svg(curve: pd.DataFrame) -> str:
    """What the k-th latent adds to the explained variance (columns ``k``, ``adds``), as SVG."""
    figure, axes = panel()
    rows = curve[curve["k"] > 0]
    axes.plot(rows["k"], rows["adds"], color=COLOURS[0])
    # Symmetric, so that latents which add nothing, or harm, are seen.
    axes.set_yscale("symlog", linthresh=1e-4)
    finish_axes(axes, "Rank of the latent", axis_label("adds"), rows["k"].max())
    return figure_svg(figure)


def adaptive_svg(table: pd.DataFrame) -> str:
    """Adaptive budgets beside fixed ones of the same mean, as SVG."""
    figure, axes = panel()
    names = {"mean": "one threshold for all tokens", "error": "until the error is small enough"}
    fixed = table.sort_values("l0")
    axes.plot(fixed["l0"], fixed["fixed"], color="#777777", label="the same k for every token")
    for colour, (rule, rows) in zip(
        itertools.cycle(COLOURS), table.groupby("rule", sort=False), strict=False
    ):
        rows = rows.sort_values("l0")
        label = names.get(str(rule), plain_text(rule))
        axes.plot(rows["l0"], rows["explained_variance"], "o-", color=colour, label=label)
    finish_axes(axes, axis_label("l0"), axis_label("explained_variance"), table["l0"].max())
    legend_below(figure)
    return figure_svg(figure)


def stability_svg(table: pd.DataFrame) -> str:
    """Agreement of first latents (columns ``k``, ``agreement``, ``shuffled``), as SVG."""
    figure, axes = panel()
    axes.plot(
        table["k"], table["agreement"], "o-", color=COLOURS[0], label="same token, noise added"
    )
    axes.plot(table["k"], table["shuffled"], "o-", color="#777777", label="unrelated tokens")
    finish_axes(axes, "First k latents", axis_label("agreement"), table["k"].max())
    axes.set_ylim(0, 1.03)
    legend_below(figure)
    return figure_svg(figure)


def tasks_svg(table: pd.DataFrame) -> str:
    """Share of the model's logit difference kept, by budget and task (one SAE's rows), as SVG."""
    figure, axes = panel()
    named = table.assign(task=table["task"].astype(str).str.replace("_", " "))
    for style, rows in each_curve(_with_x(named), "task"):
        axes.plot(rows["x"], rows["logit_retention"], marker="o", **style)
    finish_axes(axes, _budget_axis(table), axis_label("logit_retention"), table["k"].max())
    axes.axhline(1, color="#777777", linewidth=1)
    _make_room(figure, table, "task")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False)  # fmt: skip
    return figure_svg(figure)


def probing_svg(table: pd.DataFrame, size: int) -> str:
    """Mean test AUC of probes on ``size`` latents against the budget, a curve per SAE, as SVG."""
    figure, axes = panel()
    rows = table[table["probe_size"] == size]
    for style, mine in each_curve(_with_x(rows)):
        means = mine.groupby("x")["test_auc"].mean()
        axes.plot(means.index, means.to_numpy(), marker="o", **style)
    label = f"{axis_label('test_auc')} of probes on {size} latent{'s' if size > 1 else ''}"
    finish_axes(axes, _budget_axis(table), label, rows["k"].max())
    axes.axhline(0.5, color="#777777", linewidth=1)
    _make_room(figure, rows)
    legend_below(figure)
    return figure_svg(figure)


def _draw_frontier(axes: Any, table: pd.DataFrame, quality: str, label: str = "") -> None:
    drawn = _with_x(table)
    for style, rows in each_curve(drawn):
        axes.plot(rows["x"], rows[quality], marker="o", **style)
        if (error := f"{quality}_se") in rows:
            low, high = (rows[quality] + sign * 2 * rows[error] for sign in (-1, 1))
            colour = style["color"]
            axes.fill_between(rows["x"], low, high, color=colour, alpha=0.15, linewidth=0)
    largest = max(table["k"].max(), drawn["x"].max())
    if label:
        label = "\n".join(textwrap.wrap(plain_text(label), 40))
    finish_axes(axes, _budget_axis(table), label or axis_label(quality), largest)
    if quality in QUALITIES:  # another column may be of any size
        axes.set_ylim(min(0.0, table[quality].min() - 0.03), 1.03)


def _with_x(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a place along the budgets, and that as ``x``.

    Of a fixed budget k; of the others the measured l0, so that they stand beside the fixed budget
    that uses as many. Where the table has no l0, a mean budget stands at the number asked for, and
    an error target nowhere.
    """
    rule = rules_of(table)
    asked = table["k"].where(rule != "error")
    x = table["k"].where(rule == "fixed", table.get("l0", asked))
    return table.assign(x=x)[(rule == "fixed") | (x > 0)]  # the axis has no 0


def _make_room(figure: Figure, table: pd.DataFrame, by: str = "sae") -> None:
    """Makes a picture higher by the lines that rules add to its legend."""
    added = table[rules_of(table) != "fixed"].groupby([by, "rule"]) if "rule" in table else ()
    figure.set_figheight(figure.get_figheight() + 0.2 * len(added))


def _budget_axis(table: pd.DataFrame) -> str:
    return BUDGET_AXIS if (rules_of(table) == "fixed").all() else MEAN_AXIS
