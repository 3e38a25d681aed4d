"""The card of a saved SAE: the README on the hub, and the entry that makes it load by name."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import yaml
from sae_lens import SAE

from hsae_lens._util.columns import DEFINITIONS, frontier_columns, heading, stamp
from hsae_lens._util.tables import whole

CARD_FACTS = {
    "converted_from": "converted from",
    "source_licence": "its licence",
    "dataset_path": "text",
    "training_tokens": "tokens seen in training",
    "context_size": "tokens per sequence",
    "seqpos_slice": "positions used",
    "max_norm": "activations longer than this left out of every figure",
    "training_settings": "optimizer and schedule",
    "dead_latents": "dead latents",
    "seed": "seed",
    "training_time": "time",
}

PAGE = """\
# {title}

One sparse autoencoder for every budget k = 1..{k}: a token's latents are ordered, and its first k
are a good reconstruction for each k (HierarchicalTopK, arXiv 2505.24473).

```python
import hsae_lens

{load}
```

## What it is

{facts}

## The frontier

{frontier}

{definition}
{spending}{notes}"""

SPENDING = """
## Spent on average

Tokens differ in how many latents they need. `sae.budget = hsae_lens.MeanBudget({half})` keeps what
exceeds one threshold for all of them, {half} on average; `sae.at_mean_k({half})` is a stock
JumpReLU SAE that does. The thresholds are from {tokens:,} activations, and drift with the text:

{tables}
"""

HUB_HEADER = """\
---
library_name: saelens
tags: [sparse-autoencoder, hierarchical-topk]
---

"""


def store_frontier(sae: SAE[Any], table: pd.DataFrame, text: str) -> None:
    """Keeps a table of :func:`evaluate_budgets` in the SAE's metadata, under the text's name."""
    kept = [row for row in frontier_rows(sae.cfg.metadata.frontier) if row["text"] != text]
    known = dict.fromkeys(["k", "rule", "target", *frontier_columns("card")])
    columns = [column for column in known if column in table]
    for row in table[columns].to_dict("records"):
        rounded = {str(c): round(v, 4) if isinstance(v, float) else v for c, v in row.items()}
        kept.append({"text": text, **rounded})
    sae.cfg.metadata.frontier = kept
    sae.cfg.metadata.definitions = stamp("frontier")


def frontier_rows(saved: Any) -> list[dict[str, Any]]:
    """The rows of a frontier in an SAE's metadata, where others may have put anything."""
    rows = [row for row in saved if isinstance(row, dict)] if isinstance(saved, list) else []
    tidy = [{**row, "k": whole(row.get("k"))} for row in rows]
    return [row for row in tidy if isinstance(row.get("text"), str) and _is_budget(row)]


def _is_budget(row: dict[str, Any]) -> bool:
    """Whether ``k`` and, where it matters, ``l0`` of a row are such."""
    if row.get("rule", "fixed") == "fixed":
        return isinstance(row["k"], int)
    return all(isinstance(row.get(name), int | float) for name in ("k", "l0"))


def write_card(
    sae: SAE[Any], release: str, sae_id: str, title: str | None = None, load: str | None = None
) -> str:
    """The card in Markdown: how to load it, what it was trained on, its frontier, its limits.

    ``load`` is the line that loads it; None for loading it by name. All else is read from the
    SAE's config and metadata: ``frontier`` (:func:`store_frontier`), ``notes`` (sentences on what
    it is not good for) and the keys of :data:`CARD_FACTS`.
    """
    cfg, metadata = sae.cfg, sae.cfg.metadata
    facts = {
        "language model": metadata.model_name,
        "hook": metadata.hook_name,
        "width": f"{cfg.d_in} → {cfg.d_sae} latents",
        "budgets": f"1..{cfg.k}",
    }
    facts |= {
        label: metadata[key] for key, label in CARD_FACTS.items() if metadata[key] is not None
    }
    facts |= _training_facts(metadata.training_architecture_details or {})
    notes = metadata.notes or []
    quoted = ", ".join(json.dumps(text) for text in (release, sae_id))
    half = max(1, cfg.k // 4)
    return PAGE.format(
        title=title or f"{release}: {sae_id}",
        load=load or f"sae = hsae_lens.load_pretrained({quoted}, k={half})",
        k=cfg.k,
        facts=_markdown_table(pd.DataFrame(facts.items(), columns=["", " "])),
        frontier=_frontier_section(frontier_rows(metadata.frontier)),
        definition=_definition_line(metadata.definitions),
        spending=_spending_section(sae),
        notes="\n## What it is not good for\n\n" + "".join(f"- {n}\n" for n in notes)
        if notes
        else "",
    )


def release_entry(
    release: str, model: str, sae_id: str, path: str, sha256: str, **source: str
) -> str:
    """The YAML that makes the SAE loadable by name; ``source`` is repo_id or folder."""
    sae = {"id": sae_id, "path": path, "sha256": sha256}
    return yaml.safe_dump({release: {"model": model, **source, "saes": [sae]}}, sort_keys=False)


def _training_facts(details: dict[str, Any]) -> dict[str, Any]:
    if not details:
        return {}
    return {
        "budgets in the loss": details.get("budgets") or "every 1..k",
        "their weights": details.get("budget_weights"),
        "weight of the dead latents' loss": details.get("aux_loss_coefficient"),
        "b_dec starts as": details.get("b_dec_init"),
    }


def _frontier_section(rows: list[dict[str, Any]]) -> str:
    fixed = of_rule(rows, "fixed")
    return _tables_by_text(pd.DataFrame(fixed)) if fixed else "Not measured."


def _spending_section(sae: SAE[Any]) -> str:
    """How to spend on average, and what the thresholds really use on each text; "" without any."""
    if not getattr(sae.cfg, "calibration", None):
        return ""
    rows = of_rule(frontier_rows(sae.cfg.metadata.frontier), "mean")
    tables = "Not measured."
    if rows:
        table = pd.DataFrame(rows)
        place = list(table.columns).index("l0") + 1
        table.insert(place, "off by", [f"{100 * (used / asked - 1):+.1f}%" for asked, used in
                                       zip(table["k"], table["l0"], strict=True)])  # fmt: skip
        tables = _tables_by_text(table)
    half, tokens = max(1, sae.cfg.k // 4), sae.cfg.calibration["tokens"]
    return SPENDING.format(half=half, tokens=tokens, tables=tables)


def of_rule(rows: list[dict[str, Any]], rule: str) -> list[dict[str, Any]]:
    """Rows of a frontier whose budgets are of one rule, without saying so."""
    return [
        {name: value for name, value in row.items() if name not in ("rule", "target")}
        for row in rows
        if row.get("rule", "fixed") == rule
    ]


def _tables_by_text(table: pd.DataFrame) -> str:
    parts = []
    for text, mine in table.groupby("text", sort=False):
        shown = mine.drop(columns="text").dropna(axis=1, how="all").rename(columns=heading)
        parts.append(f"On {text}:\n\n{_markdown_table(shown)}")
    return "\n\n".join(parts)


def _definition_line(stamped: Any) -> str:
    """What the frontier's figures are, by the version that the SAE says, if it does."""
    entry = stamped.get("frontier") if isinstance(stamped, dict) else None
    if not isinstance(entry, dict) or not {"version", "definition"} <= set(entry):
        return f"What the figures are: {DEFINITIONS['frontier'][1]}"
    return f"What the figures are (version {entry['version']}): {entry['definition']}"


def _markdown_table(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    lines += [[_cell_text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
