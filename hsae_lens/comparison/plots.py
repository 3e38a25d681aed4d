"""Pictures of a comparison, from its tables; computes nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hsae_lens._util.columns import axis_label
from hsae_lens._util.figures import (
    BUDGET_AXIS,
    COLOURS,
    LINES,
    MEAN_AXIS,
    figure_svg,
    finish_axes,
    plain_text,
    save_png,
)
from hsae_lens.comparison.families import FAMILIES, TRUNCATED

PANELS = {"fixed": "Each token uses k latents", "mean": "k latents on average"}

LEAST_SHOWN = -0.05


def plot_comparison(
    frontier: pd.DataFrame, regret: pd.DataFrame, text: str, path: Path, title: str
) -> Path:
    """Explained variance of every family by both ways to spend, and the regret, on one text."""
    figure = _figure(frontier, regret, text, "explained_variance")
    figure.suptitle(plain_text(title, 120), fontsize=12)
    save_png(figure, path)
    return path


def comparison_svg(frontier: pd.DataFrame, regret: pd.DataFrame, text: str, of: str) -> str:
    """The same as SVG for a page, by any figure of merit."""
    return figure_svg(_figure(frontier, regret, text, of))


def _figure(frontier: pd.DataFrame, regret: pd.DataFrame, text: str, of: str) -> Figure:
    here = frontier[(frontier["text"] == text) & frontier[of].notna()]
    figure = Figure(figsize=(14, 5.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    styles = _styles(frontier)
    for axes, (rule, name) in zip((left, middle), PANELS.items(), strict=True):
        for family, rows in here[here["rule"] == rule].groupby("family", sort=False):
            _draw(axes, rows.sort_values("l0"), of, styles[str(family)])
        axes.set_title(name, fontsize=11)
        x = BUDGET_AXIS if rule == "fixed" else MEAN_AXIS
        finish_axes(axes, x, axis_label(of), here["l0"].max())
        axes.set_ylim(bottom=max(axes.get_ylim()[0], LEAST_SHOWN))
    _draw_regret(right, regret[regret["text"] == text], of, styles)
    handles = dict(zip(*reversed(_legend(left, middle)), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure


def _legend(*axes: Any) -> tuple[list[Any], list[str]]:
    both = [each.get_legend_handles_labels() for each in axes]
    return [h for handles, _ in both for h in handles], [n for _, names in both for n in names]


def _styles(frontier: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """One SAE for all is a thick line, specialists are points without a line, controls grey."""
    styles = {}
    colours, greys = itertools.cycle(COLOURS), itertools.cycle("xv+1")
    for name in frontier["family"].unique():
        family = FAMILIES.get(name)
        style: dict[str, Any] = {"label": plain_text(name)}
        if name == TRUNCATED or (family and family.control):
            style |= {"color": "#888888", "linestyle": ":", "marker": next(greys)}
        elif family and family.specialist:
            style |= {"color": next(colours), "linestyle": "", "marker": "D", "markersize": 5}
        else:
            style |= {"color": next(colours), "linewidth": 2, "marker": "o", "markersize": 4}
        styles[str(name)] = style
    return styles


def _draw(axes: Any, rows: pd.DataFrame, of: str, style: dict[str, Any]) -> None:
    half = rows.get(f"{of}_interval")
    axes.errorbar(rows["l0"], rows[of], yerr=None if half is None else half.fillna(0),
                  capsize=2, elinewidth=1, **style)  # fmt: skip


def _draw_regret(axes: Any, regret: pd.DataFrame, of: str, styles: Any) -> None:
    """A line for each family of which one SAE serves all, dashed where it spends on average."""
    axes.axhline(0, color="#777777", linewidth=1)
    axes.set_title("Best specialist minus the one SAE", fontsize=11)
    for n, ((one, rule), rows) in enumerate(regret.groupby(["one", "rule"], sort=False)):
        axes.errorbar(rows["k"] * 1.03**n, rows["regret"], yerr=rows["interval"].fillna(0),
                      capsize=3, color=styles[str(one)]["color"], linestyle=LINES[str(rule)],
                      marker="o", markersize=4)  # fmt: skip
    if len(regret):
        finish_axes(axes, "Budget k (solid), or k on average (dashed)",
                    f"Regret: {axis_label(of).lower()}", regret["k"].max())  # fmt: skip
