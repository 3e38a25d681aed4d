"""What every page shares: one self-contained HTML file, and tables in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from hsae_lens._util.atomic_files import replacing_file
from hsae_lens._util.columns import heading


def write_page(title: str, body: str, out: str | Path, script: str = "") -> Path:
    """A page that opens from a file and fetches nothing."""
    parts = resources.files("hsae_lens._util")
    page = Template(parts.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=parts.joinpath("page.css").read_text(encoding="utf-8"),
        script=script,
        body=body,
    )
    out = Path(out)
    with replacing_file(out) as fresh:
        # A path may hold bytes that are no text.
        fresh.write_text(page, encoding="utf-8", errors="backslashreplace")
    return out


def table_html(table: pd.DataFrame, digits: int = 3) -> str:
    """A table under its columns' labels, which scrolls sideways; lists become words."""
    shown = table.map(lambda cell: ", ".join(map(repr, cell)) if isinstance(cell, list) else cell)
    shown.columns = [heading(str(column)) for column in table.columns]
    with pd.option_context("display.max_colwidth", None):  # the ends of paths tell SAEs apart
        html = shown.to_html(
            index=False, border=0, na_rep="", float_format=lambda value: f"{value:.{digits}f}"
        )
    return f'<div class="scroll">{html}</div>'


def folded_table_html(summary: str, table: pd.DataFrame) -> str:
    """A table behind a line that opens it."""
    return f"<details><summary>{summary}</summary>{table_html(table)}</details>"


def definitions_html(facts: Mapping[str, Any], tables: Iterable[str]) -> str:
    """By which definitions some tables were made, as ``run.json`` says."""
    stamped, items = facts.get("definitions", {}), []
    for name in tables:
        said = "</b>: no version, so an hsae_lens made it that did not stamp its tables."
        if name in stamped:
            entry = stamped[name]
            said = f"</b>, version {escape(str(entry['version']))}: "
            said += escape(str(entry["definition"]))
        items.append(f"<li><b>{escape(name)}{said}</li>")
    return f"<ul>{''.join(items)}</ul>"
