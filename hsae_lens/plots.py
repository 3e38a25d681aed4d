"""Tables in, pictures out; computes nothing."""

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

from hsae_lens.files import replacing

# Colour-blind safe (Okabe–Ito), in the order curves are drawn.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
QUALITIES = {"explained_variance": "Explained variance", "ce_score": "Cross-entropy recovered"}
BUDGET = "Budget k: latents used per token"


def plot_frontier(table: pd.DataFrame, path: str | Path, title: str) -> Path:
    """Explained variance and recovered cross-entropy against the budget, one curve per SAE.

    Args:
        table: columns ``sae``, ``k``, ``explained_variance`` and ``ce_score``; with
            ``…_se`` columns the curves have bands of two standard errors.
        path: the PNG to write, whole or not at all.
    """
    path = Path(path)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(plain(title, 100), fontsize=12)
    for axes, quality in zip(figure.subplots(1, 2), QUALITIES, strict=True):
        _frontier(axes, table, quality)
    _legend(figure)
    save_png(figure, path)
    return path


def frontier_svg(table: pd.DataFrame, quality: str) -> str:
    """One panel of :func:`plot_frontier` as SVG for a page."""
    figure, axes = _panel()
    _frontier(axes, table, quality)
    _legend(figure)
    return figure_svg(figure)


def worth_svg(curve: pd.DataFrame) -> str:
    """What the k-th latent adds to the explained variance (columns ``k``, ``adds``), as SVG."""
    figure, axes = _panel()
    rows = curve[curve["k"] > 0]
    axes.plot(rows["k"], rows["adds"], color=COLOURS[0])
    # Symmetric, so that latents which add nothing, or harm, are seen.
    axes.set_yscale("symlog", linthresh=1e-4)
    _finish(axes, "Rank of the latent", "Explained variance it adds", rows["k"].max())
    return figure_svg(figure)


def adaptive_svg(table: pd.DataFrame) -> str:
    """Adaptive budgets beside fixed ones of the same mean, as SVG."""
    figure, axes = _panel()
    names = {"mean": "one threshold for all tokens", "error": "until the error is small enough"}
    fixed = table.sort_values("l0")
    axes.plot(fixed["l0"], fixed["fixed"], color="#777777", label="the same k for every token")
    for colour, (rule, rows) in zip(
        itertools.cycle(COLOURS), table.groupby("rule", sort=False), strict=False
    ):
        rows = rows.sort_values("l0")
        label = names.get(str(rule), plain(rule))
        axes.plot(rows["l0"], rows["explained_variance"], "o-", color=colour, label=label)
    _finish(axes, "Mean latents per token", "Explained variance", table["l0"].max())
    _legend(figure)
    return figure_svg(figure)


def stability_svg(table: pd.DataFrame) -> str:
    """Agreement of first latents (columns ``k``, ``agreement``, ``shuffled``), as SVG."""
    figure, axes = _panel()
    axes.plot(
        table["k"], table["agreement"], "o-", color=COLOURS[0], label="same token, noise added"
    )
    axes.plot(table["k"], table["shuffled"], "o-", color="#777777", label="unrelated tokens")
    _finish(axes, "First k latents", "Share in common", table["k"].max())
    axes.set_ylim(0, 1.03)
    _legend(figure)
    return figure_svg(figure)


def tasks_svg(table: pd.DataFrame) -> str:
    """Share of the model's logit difference kept, by budget and task (one SAE's rows), as SVG."""
    figure, axes = _panel()
    for colour, (task, rows) in zip(
        itertools.cycle(COLOURS), table.groupby("task", sort=False), strict=False
    ):
        name = plain(str(task).replace("_", " "))
        axes.plot(rows["k"], rows["logit_retention"], "o-", color=colour, label=name)
    _finish(axes, BUDGET, "Share of the preference kept", table["k"].max())
    axes.axhline(1, color="#777777", linewidth=1)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False)  # fmt: skip
    return figure_svg(figure)


def probing_svg(table: pd.DataFrame, size: int) -> str:
    """Mean test AUC of probes on ``size`` latents against the budget, a curve per SAE, as SVG."""
    figure, axes = _panel()
    rows = table[table["probe_size"] == size]
    for colour, (name, mine) in zip(
        itertools.cycle(COLOURS), rows.groupby("sae", sort=False), strict=False
    ):
        means = mine.groupby("k")["test_auc"].mean()
        axes.plot(means.index, means.to_numpy(), "o-", color=colour, label=plain(name))
    _finish(
        axes,
        BUDGET,
        f"Test AUC of probes on {size} latent{'s' if size > 1 else ''}",
        rows["k"].max(),
    )
    axes.axhline(0.5, color="#777777", linewidth=1)
    _legend(figure)
    return figure_svg(figure)


def _frontier(axes: Any, table: pd.DataFrame, quality: str) -> None:
    for colour, (name, rows) in zip(
        itertools.cycle(COLOURS), table.groupby("sae", sort=False), strict=False
    ):
        axes.plot(rows["k"], rows[quality], marker="o", color=colour, label=plain(name))
        if (error := f"{quality}_se") in rows:
            low, high = (rows[quality] + sign * 2 * rows[error] for sign in (-1, 1))
            axes.fill_between(rows["k"], low, high, color=colour, alpha=0.15, linewidth=0)
    _finish(axes, BUDGET, QUALITIES[quality], table["k"].max())
    axes.set_ylim(min(0.0, table[quality].min() - 0.03), 1.03)


def _finish(axes: Any, x: str, y: str, largest: float) -> None:
    axes.set_xscale("log", base=2)
    ticks = [2**n for n in range(int(largest).bit_length()) if 2**n <= largest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False)


def _panel() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    return figure, figure.subplots()


def plain(text: Any, longest: int = 60) -> str:
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
    with replacing(path) as fresh, _any_glyph():
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
    figure, axes = _panel()
    bottom = [0] * (len(edges) - 1)
    for colour, name, column in zip(COLOURS, names, counts, strict=False):
        axes.bar(edges[:-1], column, edges[1] - edges[0], bottom, align="edge", color=colour,
                 label=plain(name))  # fmt: skip
        bottom = [a + b for a, b in zip(bottom, column, strict=True)]
    axes.set_xlabel("Activation")
    axes.set_ylabel("Tokens")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure_svg(figure)
