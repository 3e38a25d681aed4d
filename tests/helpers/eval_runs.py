"""Texts for `hsae eval`, and folders as it leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from hsae_lens._util.columns import stamp
from hsae_lens._util.tables import by_sae
from hsae_lens.sae.controls import RANDOM_DECODER


def documents(file: Path, n: int, times: int = 1) -> Path:
    rows = [{"text": times * f"Document {n} says </script> and {n * n}."} for n in range(n)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def frontier(sae: str, **columns: Any) -> pd.DataFrame:
    rows = {"sae": sae, "k": [1, 2, 4], "l0": [1.0, 2.0, 4.0],
            "explained_variance": [0.3, 0.5, 0.6], "ce_score": [0.5, 0.8, 0.9],
            "ce_clean": 3.0, "ce_with_sae": [3.8, 3.3, 3.2], "ce_ablated": 6.0}  # fmt: skip
    return pd.DataFrame(rows | columns)


def mixed_frontier(sae: str, **columns: Any) -> pd.DataFrame:
    """The same with budgets of every rule: one on average, and an error target."""
    rows = {"sae": sae, "k": [1, 2, 4, 2, 4], "rule": ["fixed"] * 3 + ["mean", "error"],
            "target": [1, 2, 4, 2, 0.3], "l0": [1.0, 2.0, 4.0, 2.0, 3.5],
            "explained_variance": [0.3, 0.5, 0.6, 0.55, 0.58],
            "ce_score": [0.5, 0.8, 0.9, 0.87, 0.89],
            "ce_clean": 3.0, "ce_with_sae": [3.8, 3.3, 3.2, 3.25, 3.21],
            "ce_ablated": 6.0}  # fmt: skip
    return pd.DataFrame(rows | columns)


def make_run(
    folder: Path, sae: str = "mine", others: tuple[str, ...] = (RANDOM_DECODER,), **columns: Any
) -> Path:
    """A folder as `hsae eval` leaves it, by hand."""
    folder.mkdir(parents=True)
    tables = [frontier(name, **columns) for name in (sae, *others)]
    pd.concat(tables).to_csv(folder / "frontier.csv", index=False)
    facts = {"model": "tiny", "hook": "blocks.1.hook_resid_post", "d_in": 32, "d_sae": 96, "k": 4,
             "text": "a text", "tokens": 64, "hsae_lens": "0", "torch": "0", "seconds": 1,
             "settings": {"saes": [sae]}, "definitions": stamp("frontier")}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def run_with_rules(folder: Path, sae: str = "mine", **columns: Any) -> Path:
    """As if budgets on average and error targets had been asked of its hierarchical SAEs."""
    tables = [mixed_frontier(name, **columns) for name in (sae, RANDOM_DECODER)]
    by_sae([*tables, frontier("stock")]).to_csv(folder / "frontier.csv", index=False)
    return folder


def with_order(folder: Path) -> Path:
    """What is only there for a hierarchical SAE."""
    curve = pd.DataFrame({"k": range(5), "explained_variance": 0.5, "adds": 0.1})
    curve.to_csv(folder / "curve.csv", index=False)
    example = {
        "tokens": ["a", "</script>", "c"],
        "judged": [False, True, True],
        "explained": [[0.0, 0.1, float("nan"), 0.3, 0.4]] * 3,
        "latents": [[[7, 1.5], [8, 1.0], [9, 0.5], [2, 0.1]]] * 3,
        "budgets": [1, 2, 4],
        "predictions": [[[["x", 0.5]]] * 3] * 4,
    }
    (folder / "examples.json").write_text(json.dumps([example]))
    return folder
