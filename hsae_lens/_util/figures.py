"""What every picture shares: colours, panels, legends, and how it is saved."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from hsae_lens._util.atomic_files import replacing_file
from hsae_lens._util.tables import rows_by_rule, with_rule_in_name

# Colour-blind safe (Okabe–Ito), in the order curves are drawn.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]

BUDGET_AXIS = "Budget k: latents used per token"

MEAN_AXIS = "Latents used per token: k, or on average"

LINES = {"fixed": "-", "mean": "--", "error": ":"}
"""How a curve is drawn, by the rule of its budgets; its colour says whose it is."""


def each_curve(table: pd.DataFrame, by: str = "sae") -> Iterator[tuple[dict[str, Any], Any]]:
    """How matplotlib is to draw each curve, and its rows: a colour per name, a line per rule."""
    for colour, (_, mine) in zip(
        itertools.cycle(COLOURS), table.groupby(by, sort=False), strict=False
    ):
        for rule, line in LINES.items():
            rows = rows_by_rule(with_rule_in_name(mine, by), rule)
            if len(rows):
                label = plain_text(rows[by].iloc[0])
                yield {"color": colour, "linestyle": line, "label": label}, rows


def finish_axes(axes: Any, x: str, y: str, largest: float, every: int = 1) -> None:
    """Labels, and x in powers of two up to ``largest``, a tick at each ``every``-th of them."""
    axes.set_xscale("log", base=2)
    ticks = [2**n for n in range(0, int(largest).bit_length(), every)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, columns: int = 1) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def panel() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    return figure, figure.subplots()


def plain_text(text: Any, longest: int = 60) -> str:
    """Any text as matplotlib draws it unchanged; every text that we did not write goes through it.

    ``$`` begins no formula, a first ``_`` does not hide a label, line ends are shown, characters
    that a page or a picture cannot hold are spelled (``\\x00``), and the middle of a long one, of
    a path say, is left out.
    """
    text = "".join(map(_visible, str(text)))
    if len(text) > longest:
        text = f"{text[: longest // 3]}…{text[len(text) + 1 + longest // 3 - longest :]}"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if character == "\n":
        return "↵"
    if character.isspace():
        return " "
    return character.encode("unicode_escape").decode()


def save_png(figure: Figure, path: Path) -> None:
    """A figure as a PNG, whole or not at all."""
    with replacing_file(path) as fresh, _any_glyph():
        figure.savefig(fresh, dpi=150)


def figure_svg(figure: Figure) -> str:
    """A figure as SVG to put into a page; no two of a page have an id in common."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hsae"}), _any_glyph():
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    svg = re.sub('<g id="[^"]*">', "<g>", svg)  # names of parts, which nothing refers to
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    for name in set(re.findall(r'<\w+ id="(\w+)"', svg)):
        svg = svg.replace(name, f"{name}{own}")
    return svg


@contextmanager
def _any_glyph() -> Iterator[None]:
    """No warning for what matplotlib's font lacks: a PNG shows a box, a page the reader's font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        yield


def histogram_svg(edges: Sequence[float], counts: Sequence[Sequence[int]], names: Any) -> str:
    """Stacked histograms over common bins, one colour per name, as SVG.

    Args:
        edges: of the bins.  counts: for each name, a number per bin.
    """
    figure, axes = panel()
    bottom = [0] * (len(edges) - 1)
    for colour, name, column in zip(COLOURS, names, counts, strict=False):
        axes.bar(edges[:-1], column, edges[1] - edges[0], bottom, align="edge", color=colour,
                 label=plain_text(name))  # fmt: skip
        bottom = [a + b for a, b in zip(bottom, column, strict=True)]
    axes.set_xlabel("Activation")
    axes.set_ylabel("Tokens")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure_svg(figure)
