"""The demo, as a process."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from helpers.command import hsae
from sae_lens import SAE


def test_the_demo_leaves_what_it_says(gemma2_folder: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    run = hsae(
        *("demo", "--model", gemma2_folder, "--text", text_file, "--out", out, "--layer", 1),
        *("--steps", 6, "--d-sae", 64, "--k", 8, "--eval-tokens", 1024),
    )
    table = pd.read_csv(out / "frontier.csv")
    assert list(table.columns) == ["sae", "k", "l0", "explained_variance", "mse", "ce_score"]
    assert list(table["k"]) == [1, 2, 4, 8] * 2
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert (
        SAE.load_from_disk(out / "sae").cfg.metadata.training_architecture_details["budgets"]
        is None
    )
    assert SAE.load_from_disk(out / "control").cfg.architecture() == "hierarchical_topk"
    assert {path.name for path in out.iterdir()} == {
        "sae",
        "control",
        "frontier.csv",
        "frontier.png",
    }
    ran = json.loads((out / "sae" / "runner_cfg.json").read_text())
    assert ran["output_path"] == str(out / "sae")
    for line in ("hierarchical", "frontier.csv", "frontier.png", "Took"):
        assert line in run.stdout
    assert "Training the hierarchical SAE: 6 steps of 1024 tokens." in run.stderr
    assert "Training" not in run.stdout
