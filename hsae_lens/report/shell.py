"""What every page shares: one self-contained HTML file, and tables in it."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import pandas as pd

from hsae_lens.files import replacing


def write_page(title: str, body: str, out: str | Path, script: str = "") -> Path:
    """A page that opens from a file and fetches nothing."""
    parts = resources.files("hsae_lens.report")
    page = Template(parts.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=parts.joinpath("page.css").read_text(encoding="utf-8"),
        script=script,
        body=body,
    )
    out = Path(out)
    with replacing(out) as fresh:
        fresh.write_text(page, encoding="utf-8")
    return out


def table_html(table: pd.DataFrame, digits: int = 3) -> str:
    """A table that scrolls sideways where it is too wide; lists become words."""
    shown = table.map(lambda cell: ", ".join(map(repr, cell)) if isinstance(cell, list) else cell)
    html = shown.to_html(
        index=False, border=0, na_rep="", float_format=lambda value: f"{value:.{digits}f}"
    )
    return f'<div class="scroll">{html}</div>'
