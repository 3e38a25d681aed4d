"""The evidence of a pilot as one picture, from its findings; computes nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hsae_lens._util.figures import (
    BUDGET_AXIS,
    COLOURS,
    figure_svg,
    finish_axes,
    plain_text,
    save_png,
)
from hsae_lens.pilot.confirming import DEFAULTS, RECOMMENDED
from hsae_lens.pilot.in_short import NAMES, PilotResult
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.search import Measured, Point, axes_around


def plot_pilot(result: PilotResult, path: Path, title: str) -> Path:
    """A panel for each setting, and the frontiers at the end."""
    figure = _evidence(result)
    figure.suptitle(plain_text(title, 120), fontsize=12)
    save_png(figure, path)
    return path


def pilot_svg(result: PilotResult) -> str:
    """The same for a page."""
    return figure_svg(_evidence(result))


def look_svg(look: Look) -> str:
    """The length of activations by position, and the variance in the first directions."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(len(look.norms)), look.norms, color=COLOURS[0])
    left.set_yscale("log")
    left.set_xlabel("Position in the sequence")
    left.set_ylabel("Median length")
    right.plot(range(1, look.d_in + 1), look.spectrum, color=COLOURS[0])
    right.set_xscale("log")
    right.set_xlabel("Principal directions")
    right.set_ylabel("Share of the variance")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure_svg(figure)


def _evidence(result: PilotResult) -> Figure:
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    grid = figure.subplots(2, 3).flatten()
    for axes, axis in zip(grid, axes_around(result.findings.default), strict=False):
        _draw_axis(axes, axis.name, result)
    _draw_frontiers(grid[-1], result)
    return figure


def _draw_axis(axes: Any, name: str, result: PilotResult) -> None:
    """A line for each set of points that differ in this setting only."""
    axes.set_title(NAMES[name][0].upper() + NAMES[name][1:], fontsize=11)
    values = next(axis.values for axis in axes_around(result.findings.default) if axis.name == name)
    tried = {getattr(point.point.settings, name) for point in result.findings.points}
    places = {value: n for n, value in enumerate(v for v in values if v in tried)}
    axes.set_xticks(list(places.values()), [_tick(value) for value in places])
    for colour, points in zip(itertools.cycle(COLOURS), _lines(name, result), strict=False):
        budgets = sorted(set.intersection(*(set(point.explained) for point in points)))
        at = [places[getattr(point.point.settings, name)] for point in points]
        merits = [point.merit(budgets) for point in points]
        axes.errorbar(*zip(*sorted(zip(at, merits, strict=True)), strict=True),
                      yerr=result.findings.noise, capsize=3, marker="o", color=colour,
                      label=f"{points[0].point.steps} steps")  # fmt: skip
    if name == "lr" and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.set_ylabel("Mean explained variance")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(name: str, result: PilotResult) -> list[list[Measured]]:
    """Points of the first seed, those together that differ in one setting only."""
    together: dict[Point, list[Measured]] = {}
    for point in [
        point for point in result.findings.points if not (point.point.seed or point.failed)
    ]:
        default = getattr(result.findings.default, name)
        settings = replace(point.point.settings, **{name: default})
        together.setdefault(replace(point.point, settings=settings), []).append(point)
    return [points for points in together.values() if len(points) > 1]


def _tick(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", "\n")


def _draw_frontiers(axes: Any, result: PilotResult) -> None:
    for colour, name in zip(COLOURS, (DEFAULTS, RECOMMENDED), strict=False):
        rows = result.confirmed.of(name)
        if len(rows):
            axes.plot(rows["k"], rows["explained_variance"], marker="o", color=colour, label=name)
    axes.set_title("Held-out text, other seeds", fontsize=11)
    finish_axes(axes, BUDGET_AXIS, "Explained variance", max(result.budgets))
    axes.legend(frameon=False)
