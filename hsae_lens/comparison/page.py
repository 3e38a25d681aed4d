"""One page of a comparison: the result in words, pictures, tables, how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from hsae_lens._util.columns import axis_label
from hsae_lens._util.html import definitions_html, folded_table_html, table_html, write_page
from hsae_lens.comparison.families import FAMILIES
from hsae_lens.comparison.plots import PANELS, comparison_svg
from hsae_lens.comparison.regret import MERITS

ONE, SPECIALISTS = "hierarchical", "topk"  # whose result the page begins with


def write_comparison(
    tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any], out: Path
) -> Path:
    """The page.

    Args:
        tables: ``frontier``, ``cost``, and by figure of merit ``regret explained_variance`` ….
        facts: the settings, ``learning_rates`` and ``definitions``.
    """
    frontier = tables["frontier"]
    body = [
        "<h1>One SAE for every budget, beside specialists</h1>",
        "<h2>In short</h2><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in in_short(tables))
        + "</ul>",
    ]
    for of in [of for of in MERITS if f"regret {of}" in tables]:
        for text in frontier["text"].unique():
            regret = tables[f"regret {of}"]
            body += [
                f"<h2>{escape(axis_label(of))}, {escape(text)}</h2>",
                f'<div class="wide">{comparison_svg(frontier, regret, text, of)}</div>',
                folded_table_html("Regret", regret[regret["text"] == text]),
            ]
    body += [
        "<h2>What each family takes</h2>",
        "<p>Seconds are training alone, on this machine.</p>",
        table_html(tables["cost"], 1),
        "<h2>Families</h2>",
        "<ul>"
        + "".join(
            f"<li><b>{escape(name)}</b>: {escape(FAMILIES[name].about)}</li>"
            for name in FAMILIES
            if name in set(frontier["family"])
        )
        + "</ul>",
        folded_table_html("Every family at every budget", frontier),
        "<h2>How it was made</h2>",
        table_html(pd.DataFrame(list(facts["settings"].items()), columns=["setting", "value"])),
        folded_table_html(
            "Learning rates tried: explained variance of validation tokens",
            pd.DataFrame(facts["learning_rates"]).T.rename_axis("family").reset_index(),
        ),
        definitions_html(facts, ["comparison"]),
    ]
    return write_page("One SAE beside specialists", "\n".join(body), out)


def in_short(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The result in sentences: where one SAE is as good, where a specialist wins, what it costs."""
    regret = tables["regret explained_variance"]
    lines = [
        f"{PANELS[str(rule)]}, {text}: {_where(rows)}"
        for (text, rule), rows in regret[regret["one"] == ONE].groupby(["text", "rule"], sort=False)
    ]
    cost = tables["cost"].set_index("family")
    if {ONE, SPECIALISTS} <= set(cost.index):
        one, many = cost.loc[ONE], cost.loc[SPECIALISTS]
        lines.append(
            f"One SAE took {one['seconds']:.0f} s to train; {many['needed']:g} specialists take "
            f"{many['seconds_in_all']:.0f} s by the same step."
        )
    return lines


def _where(regret: pd.DataFrame) -> str:
    """Where one SAE is ahead, where behind, by a difference beyond its interval, and how far."""
    beyond = regret["interval"].fillna(0)
    ahead, behind = (
        ", ".join(f"{k:g}" for k in regret.loc[sign * regret["regret"] > beyond, "k"]) or "none"
        for sign in (-1, 1)
    )
    ranked = regret.sort_values("regret")
    least, worst = ranked.iloc[0], ranked.iloc[-1]
    return (
        f"the one SAE is ahead of the best specialist at k = {ahead}, behind at {behind}; "
        f"elsewhere no difference is seen. Its regret is {worst['regret']:+.3f} at worst (k = "
        f"{worst['k']:g}, {worst['best']}) and {least['regret']:+.3f} at best (k = {least['k']:g})."
    )
