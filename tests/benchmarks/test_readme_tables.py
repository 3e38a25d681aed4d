"""The tables of speed: which rows a card's figures give, and what is kept out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme
from benchmarks.record import RESULTS

SHAPE = {"tokens": 4096, "d_in": 2304, "d_sae": 65536, "k": 64}
SIZE = "4096×2304, 65536 latents, K=64"


def timing(seconds: float, **more: float) -> dict[str, float]:
    return {"median": seconds, "fastest": seconds, "slowest": seconds, **more}


# Made up, in round numbers: no card has measured these.
PARTS: dict[str, dict[str, Any]] = {
    "loss": {
        "ours": timing(0.002), "ours, 8 budgets": timing(0.001), "bags": timing(0.006),
        "scan": timing(0.020), "ours, J={K}": timing(0.001), "flex_sae": timing(0.004),
    },
    "deterministic": {"ours": timing(0.002), "deterministic": timing(0.0025)},
    "selection": {
        "topk": timing(0.006), "in groups of 16": timing(0.004), "in groups of 32": timing(0.003),
    },
    "gemma": {
        "context": 1024,
        "model": timing(0.04, tokens_per_s=100_000), "step": timing(0.01, tokens_per_s=400_000),
        "both": timing(0.05, tokens_per_s=80_000),
    },
    "profile": {"what": "waits", "of": "loss", "waits": 0},
}  # fmt: skip
# The loss over every budget, and over 8.
EVERY, FEW = (f"| nested loss{of} | {SIZE} |" for of in (", forward + backward", " at 8 budgets"))
GEMMA = f"| Gemma-2 2B's shape up to layer 12, context 1024, and our step | {SIZE} |"
ROWS = {
    "loss": [
        f"{EVERY} 2.00 ms | plain PyTorch, bags: 6.00 ms | 3.00 |",
        f"{EVERY} 2.00 ms | plain PyTorch, scan: 20 ms | 10.00 |",
        f"{EVERY} 2.00 ms | ours, loss at K only: 1.00 ms | 0.50 |",
        f"{EVERY} 2.00 ms | flex_sae: 4.00 ms | 2.00 |",
        f"{FEW} 1.00 ms | every budget: 2.00 ms | 2.00 |",
        f"{FEW} 1.00 ms | flex_sae at every budget: 4.00 ms | 4.00 |",
    ],
    "deterministic": [
        f"| nested loss, deterministic mode | {SIZE} | 2.50 ms = 1.25 × default "
        "| by default: 2.00 ms | |"
    ],
    "selection": [
        f"| choosing K latents in groups of 32 | {SIZE} | 3.00 ms | torch.topk: 6.00 ms | 2.00 |"
    ],
    "gemma": [
        f"{GEMMA} 80000 tokens/s | the model alone: 100000 tokens/s | 0.80 |",
        f"{GEMMA} 80000 tokens/s | our step alone: 400000 tokens/s | 0.20 |",
    ],
    "profile": [],
}


def write(folder: Path, names: list[str], **more: Any) -> Path:
    machine = {"cpu": "a CPU", "threads": 1, "torch": "0", "python": "0", "gpu": "made-up card"}
    parts = {n: {"machine": machine, "rows": [{"shape": SHAPE, **PARTS[n]}]} for n in names}
    (folder / "cuda.json").write_text(json.dumps(parts | more))
    return folder


def shown(folder: Path) -> list[str]:
    """The rows below the tables' heads."""
    lines = readme.table(folder).splitlines()
    return [line for line in lines if line.startswith("| ") and "| measure |" not in line]


@pytest.mark.parametrize("name", PARTS)
def test_each_part_of_a_card_has_its_rows_and_no_others(name: str, tmp_path: Path) -> None:
    assert shown(write(tmp_path, [name])) == ROWS[name]


def test_few_budgets_have_a_row_on_a_card_only(tmp_path: Path) -> None:
    folder = write(tmp_path, ["loss"])
    figures = json.loads((folder / "cuda.json").read_text())
    del figures["loss"]["machine"]["gpu"]
    (folder / "cpu.json").write_text(json.dumps(figures))
    (folder / "cuda.json").unlink()
    assert shown(folder) == [row for row in ROWS["loss"] if FEW not in row]


def test_the_parts_of_a_card_stand_under_its_name(tmp_path: Path) -> None:
    folder = write(tmp_path, list(PARTS))
    assert shown(folder) == [row for rows in ROWS.values() for row in rows]
    assert "On made-up card, torch 0, medians of interleaved runs:" in readme.table(folder)


def test_figures_of_a_dry_run_reach_no_page(tmp_path: Path) -> None:
    write(tmp_path, ["loss"], **{"dry run": True})
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"]
    for page in pages:
        page.write_text(f"{readme.BEGIN}\nbefore\n{readme.END}\n")
    with pytest.raises(ValueError, match=r"cuda\.json is of a dry run"):
        readme.write(tmp_path, tmp_path)
    assert all("before" in page.read_text() for page in pages)


def test_no_figures_of_a_dry_run_are_kept() -> None:
    for file in RESULTS.glob("*.json"):
        assert "dry run" not in json.loads(file.read_text()), file


def test_the_table_of_defaults_is_of_its_figures() -> None:
    page = (readme.ROOT / "docs" / "benchmarks.md").read_text()
    shown = page.split(readme.DEFAULTS_BEGIN)[1].split(readme.DEFAULTS_END)[0]
    assert shown.strip() == readme.defaults_table(RESULTS)


def test_a_row_of_defaults(tmp_path: Path) -> None:
    row = {"family": "made up", "setting": "ours", "lr": 2e-3, "outliers": 3, "shape": SHAPE,
           "without": [-1.554, 0.7, 0.8], "with": [0.1, 0.2, 0.3], "seconds": 1.0}  # fmt: skip
    (tmp_path / readme.DEFAULTS).write_text(json.dumps({"defaults": {"rows": [row]}}))
    assert readme.defaults_table(tmp_path).splitlines()[-1] == (
        "| made up (3 outliers) | ours | 2.0e-03 | -1.55 | 0.70 | 0.80 | 0.10 | 0.20 | 0.30 |"
    )


def test_the_table_of_conversions_is_of_its_figures() -> None:
    page = (readme.ROOT / "docs" / "tasks" / "convert.md").read_text()
    shown = page.split(readme.CONVERSION_BEGIN)[1].split(readme.CONVERSION_END)[0]
    assert shown.strip() == readme.conversion_table(RESULTS)


def test_conversions_are_means_over_seeds_and_stand_once(tmp_path: Path) -> None:
    def row(steps: int, mode: str, first: float, **more: Any) -> dict[str, Any]:
        figures = [first, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
        return {"source": "TopK", "mode": mode, "steps": steps, "lr": 2e-3, "cosine": 0.9,
                "explained_variance": figures, **more}  # fmt: skip

    rows = [
        row(0, "a", 0.1),
        row(100, "a", 0.1, seed=0),
        row(100, "a", 0.3, seed=1),
        row(0, "b", 0),
    ]
    (tmp_path / readme.CONVERSION).write_text(json.dumps({"conversion": {"rows": rows}}))
    assert readme.conversion_table(tmp_path).splitlines()[2:] == [
        "| TopK |  |  | 0 | 0% | 0.100 | 0.300 | 0.400 | 0.500 | 0.600 | 0.700 | 0.90 |",
        "| TopK | a | 0.002 | 100 | 10% | 0.200 | 0.300 | 0.400 | 0.500 | 0.600 | 0.700 | 0.90 |",
    ]
