"""One page of a pilot: what to do and why for who decides, then the evidence for who trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from hsae_lens._util.html import folded_table_html, table_html, write_page
from hsae_lens.evaluation.in_short import size_in_words
from hsae_lens.evaluation.report import first_screen_html
from hsae_lens.pilot.in_short import (
    PilotResult,
    how_rates_fall,
    pilot_in_short,
    prices,
    time_in_words,
)
from hsae_lens.pilot.plots import look_svg, pilot_svg


def write_pilot_page(
    result: PilotResult, recipe: str, settings: Mapping[str, Any], out: Path
) -> Path:
    """The page.

    Args:
        recipe: the file's text.  settings: of the command.
    """
    body = [
        f"<h1>A pilot for {escape(result.model_name)}</h1>",
        first_screen_html(pilot_in_short(result)),
        "<h2>The evidence</h2><p>Mean explained variance of validation tokens at the budgets, each "
        "setting on its own; bars are how far two equal trainings with other seeds differ. Last, "
        "the frontiers of the trainings at the end, with other seeds, on held-out text.</p>",
        f'<div class="wide">{pilot_svg(result)}</div>',
        _list([how_rates_fall(result), *prices(result)]),
        folded_table_html("Every point", points_table(result)),
        folded_table_html("Held-out frontiers", result.confirmed.frontier),
        "<h2>What the activations look like</h2>",
        _list(result.look.sentences()),
        f'<div class="wide">{look_svg(result.look)}</div>',
        "<h2>The full run</h2>",
        table_html(full_run_table(result)),
        "<p><code>hsae train --recipe FILE</code> runs it:</p>",
        f'<pre class="wide">{escape(recipe)}</pre>',
        "<h2>How it was made</h2>",
        folded_table_html(
            "Settings of the pilot", pd.DataFrame(settings.items(), columns=["setting", "value"])
        ),
    ]
    return write_page("A pilot", "\n".join(body), out)


def points_table(result: PilotResult) -> pd.DataFrame:
    """A row for each point in the order of the search; its merit is at the budgets up to its K."""
    return pd.DataFrame(
        {
            **asdict(point.point.settings),
            "seed": point.point.seed,
            "steps": point.point.steps,
            "seconds": round(point.seconds, 1),
            "mean explained variance": point.merit(),
            **{f"at k={k}": point.explained.get(k) for k in result.budgets},
            "dead": point.dead,
        }
        for point in result.findings.points
    )


def full_run_table(result: PilotResult) -> pd.DataFrame:
    """What the full run takes on this machine, in words."""
    run = result.run
    rows = {
        f"time for {run.tokens:,} tokens": time_in_words(run.seconds),
        "of it the language model": time_in_words(run.model_seconds),
        "memory": size_in_words(run.bytes),
        **{f"of it {name}": size_in_words(n) for name, n in run.memory.items()},
        "file": size_in_words(run.file_bytes),
    }
    return pd.DataFrame(rows.items(), columns=["what", "about"])


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
