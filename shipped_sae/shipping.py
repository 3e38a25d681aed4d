"""The files of a release in the package: weights, cards, their table, a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from hsae_lens import HierarchicalTopKSAE
from hsae_lens._util.atomic_files import replacing_file, replacing_folder
from hsae_lens._util.columns import LABELS, QUALITIES
from hsae_lens.evaluation.plots import plot_frontier
from hsae_lens.models.smollm2 import SMOLLM2_HUB_NAME
from hsae_lens.releases.directory import TABLE
from hsae_lens.releases.hub_loader import checksum
from hsae_lens.releases.model_card import frontier_rows, write_card
from shipped_sae.describing import SAME_KIND

RELEASE = "smollm2-135m-res-htopk"
PICTURE = Path("docs/pretrained.png")
HEADER = "# The releases in the package; written by `python -m shipped_sae`.\n"


def _folder(sae_id: str) -> Path:
    return TABLE.parent / "pretrained" / RELEASE / sae_id


def _table() -> dict[str, Any]:
    empty = {"model": SMOLLM2_HUB_NAME, "folder": f"pretrained/{RELEASE}", "saes": []}
    return {RELEASE: empty} | (yaml.safe_load(TABLE.read_text()) or {})


def _shipped_ids() -> list[str]:
    return [entry["id"] for entry in _table()[RELEASE]["saes"]]


def shipped_saes(device: str) -> Iterator[HierarchicalTopKSAE]:
    """All that are shipped, as they are."""
    for sae_id in _shipped_ids():
        yield HierarchicalTopKSAE.load_from_disk(_folder(sae_id), device=device, dtype="float32")


def worse_figures(sae: HierarchicalTopKSAE) -> list[str]:
    """Each figure of the present card at which a new SAE of its hook is worse, with both numbers.

    None where no SAE of that hook is shipped.
    """
    sae_id = sae.cfg.metadata.hook_name
    if sae_id not in _shipped_ids():
        return []
    new = {_place(row): row for row in frontier_rows(sae.cfg.metadata.frontier)}
    lines = []
    for row in _frontier(sae_id):
        for of in QUALITIES:
            ours = new.get(_place(row), {}).get(of, math.nan)
            if not ours >= row[of]:
                where = f"{row['rule']} k={row['k']:g}, on {row['text']}"
                lines.append(f"{LABELS[of]}, {where}: {ours:.4f}, the shipped one {row[of]:.4f}")
    return lines


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["text"], row["rule"], row["k"]


def _frontier(sae_id: str) -> list[dict[str, Any]]:
    """What the card of a shipped SAE has."""
    cfg = json.loads((_folder(sae_id) / "cfg.json").read_text(encoding="utf-8"))
    return frontier_rows(cfg["metadata"]["frontier"])


def ship(sae: HierarchicalTopKSAE) -> None:
    """Writes weights and card, then their entry in the table."""
    sae_id = sae.cfg.metadata.hook_name
    sae.to(dtype=torch.bfloat16)
    sae.cfg.dtype, sae.cfg.device = "bfloat16", "cpu"
    with replacing_folder(_folder(sae_id)) as fresh:
        weights, _ = sae.save_model(fresh)
        sha256, megabytes = checksum(weights), weights.stat().st_size / 1e6
        (fresh / "README.md").write_text(write_card(sae, RELEASE, sae_id), encoding="utf-8")

    releases = _table()
    others = [entry for entry in releases[RELEASE]["saes"] if entry["id"] != sae_id]
    saes = [*others, {"id": sae_id, "path": sae_id, "sha256": sha256}]
    releases[RELEASE]["saes"] = sorted(saes, key=lambda e: int(e["id"].split(".")[1]))
    with replacing_file(TABLE) as fresh:
        fresh.write_text(HEADER + yaml.safe_dump(releases, sort_keys=False))
    print(f"Shipped {_folder(sae_id)} ({megabytes:.1f} MB).")


def draw_picture() -> None:
    """A curve for each depth and rule, on held-out text of the same kind; the cards have both."""
    rows = [
        {"sae": f"after block {sae_id.split('.')[1]}", **row}
        for sae_id in _shipped_ids()
        for row in _frontier(sae_id)
        if row["text"] == SAME_KIND
    ]
    title = f"{RELEASE}: one SAE for every budget at each depth, {SAME_KIND}"
    plot_frontier(pd.DataFrame(rows), PICTURE, title)
    print(f"Picture: {PICTURE}")
