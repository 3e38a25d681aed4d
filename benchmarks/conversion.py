"""What a short fine-tuning makes of an SAE for one budget, by steps and learning rate.

SmolLM2-135M, block 15: TopK and BatchTopK SAEs for K=64 and hierarchical ones, trained by ``hsae
compare`` for 1000 steps of 512 tokens; then the former converted, as ``hsae convert`` does it.
``python -m benchmarks.conversion`` draws the picture again from the figures.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from sae_lens import SAE, JumpReLUSAE, SAETrainer
from sae_lens.config import SAETrainerConfig

from benchmarks.readme import CONVERSION
from benchmarks.record import RESULTS
from benchmarks.session import Session
from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAE, MeanBudget
from hsae_lens._util.figures import COLOURS, save_png
from hsae_lens.comparison import CompareConfig, run_compare
from hsae_lens.comparison.cells import CellFolder
from hsae_lens.comparison.material import SAME_KIND, Material, read_material
from hsae_lens.conversion.config import REORDERING_LR
from hsae_lens.conversion.finetuning import learning_rate_settings
from hsae_lens.conversion.reordering import settle, train_only_gains_and_biases
from hsae_lens.evaluation import evaluate_activations
from hsae_lens.training.trainer import HierarchicalTopKTrainer

STUDY = Path("runs/conversion-study")
DRAWN = [1, 4, 8, 16, 32, 64]
PICTURE = Path(__file__).parents[1] / "docs/convert.png"
K, BUDGETS = 64, [1, 2, 4, 8, 16, 32, 64]
FROM_NOTHING, BATCH, SEEDS = 1000, 512, 3
STEPS, LR = (30, 100, 300, 1000), 2e-3
TRIED = {  # learning rates beside LR, with the first seed, at 100 steps
    False: (1e-3, 4e-3),
    True: (3e-3, 3e-2),
}
JUDGED = 8192  # held-out tokens
EVERY, ORDER = "every weight", "gains and biases only"


def conversion(run: Session) -> Iterator[dict[str, Any]]:
    """Rows: explained variance of held-out tokens at k=1, 2, 4, … 64, by source, steps, rate."""
    material = _study(run.device)
    rows = []
    for row in _rows(run.device, material):
        shown = " ".join(f"{value:.3f}" for value in row["explained_variance"])
        print(f"{row['source']:12s} {row['mode']:22s} seed {row['seed']} {row['steps']:5d} steps "
              f"lr {row['lr']:.0e}: {shown}", flush=True)  # fmt: skip
        rows.append(row)
        yield row
    draw(rows, PICTURE)


def _study(device: str) -> Material:
    """Trains the sources and what is trained from nothing, if they are not there."""
    both = {"hierarchical": SEEDS, "topk": SEEDS, "batchtopk": 1}
    for family, seeds in both.items():
        run_compare(
            CompareConfig(
                out=str(STUDY),
                families=[family],
                budgets=[K],
                seeds=seeds,
                steps=FROM_NOTHING,
                batch_size=BATCH,
                learning_rates=[LR],
                train_tokens=250_000,
                ce_tokens=0,
                device=device,
            )
        )
    return read_material(STUDY / "activations")


def _rows(device: str, material: Material) -> Iterator[dict[str, Any]]:
    judge = _Judge(material, device)
    for seed in range(SEEDS):
        yield judge.row("from nothing", _cell("hierarchical", seed, device), seed, FROM_NOTHING)
    for family, name, seeds in (("topk", "TopK", SEEDS), ("batchtopk", "BatchTopK", 1)):
        for seed in range(seeds):
            yield from _converted(judge, name, _cell(family, seed, device), seed)


def _cell(family: str, seed: int, device: str) -> SAE[Any]:
    return CellFolder(STUDY / "cells" / f"{family}-k{K}-lr{LR:g}-seed{seed}").sae(device)


def _converted(judge: _Judge, name: str, source: SAE[Any], seed: int) -> Iterator[dict[str, Any]]:
    for only_reorder, usual in ((False, LR), (True, REORDERING_LR)):
        tried = [(steps, usual) for steps in (0, *STEPS)]
        tried += [(100, lr) for lr in TRIED[only_reorder]] if seed == 0 else []
        for steps, lr in tried:
            started = time.perf_counter()
            sae = _fine_tuned(source, judge.material, steps, lr, seed, only_reorder)
            row = judge.row(name, sae, seed, steps, lr, ORDER if only_reorder else EVERY)
            row["seconds"] = round(time.perf_counter() - started, 1)
            row["cosine"] = round(float(_cosine(source, sae)), 4)
            if not steps and isinstance(source, JumpReLUSAE):
                row["itself"] = judge.on_its_own(source)
            yield row


def _fine_tuned(
    source: SAE[Any], material: Material, steps: int, lr: float, seed: int, only_reorder: bool
) -> HierarchicalTopKSAE:
    sae = HierarchicalTopKTrainingSAE.from_sae(source, k=K)
    if only_reorder:
        train_only_gains_and_biases(sae, material.validation.float())
    cfg = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        **learning_rate_settings(steps, lr),
        device=str(sae.device),
    )
    if steps:
        torch.manual_seed(seed)
        trainer: Any = SAETrainer(cfg, sae, material.batches(BATCH, seed))
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            HierarchicalTopKTrainer.adopt(trainer).fit()
    settle(sae)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return HierarchicalTopKSAE.load_from_disk(folder, device=str(sae.device))


def _cosine(source: SAE[Any], sae: SAE[Any]) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(source.W_dec, sae.W_dec, dim=-1).mean()


class _Judge:
    def __init__(self, material: Material, device: str) -> None:
        self.material = material
        self.held = material.held[SAME_KIND].activations[:JUDGED].to(device)

    def row(
        self, source: str, sae: Any, seed: int, steps: int, lr: float = LR, mode: str = EVERY
    ) -> dict[str, Any]:
        """With thresholds also what 64 latents on average explain, and how many were used."""
        mean = [MeanBudget(K)] if sae.cfg.calibration else []
        table = evaluate_activations(sae, self.held, [*BUDGETS, *mean], progress=False)
        figures = [round(value, 4) for value in table["explained_variance"]]
        return {
            "source": source,
            "mode": mode,
            "seed": seed,
            "steps": steps,
            "lr": lr,
            "explained_variance": figures[: len(BUDGETS)],
            "on average": figures[len(BUDGETS) :],
            "l0 on average": [round(value, 2) for value in table["l0"][len(BUDGETS) :]],
        }

    def on_its_own(self, source: JumpReLUSAE) -> dict[str, float]:
        """What the source explains with the latents that its own threshold asks for."""
        table = evaluate_activations(source, self.held, [source.cfg.d_sae], progress=False)
        return {name: round(float(table[name][0]), 4) for name in ("l0", "explained_variance")}


def mean_rows(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for each source, mode, steps and rate: figures at each budget, meaned over seeds."""
    keys = ["source", "mode", "steps", "lr"]
    table = pd.DataFrame(rows)
    figures = pd.DataFrame(table["explained_variance"].to_list(), columns=BUDGETS)
    return pd.concat([table[keys], figures], axis=1).groupby(keys, sort=False).mean().reset_index()


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Explained variance against steps, a curve per budget; dotted: from nothing, 1000 steps."""
    table = mean_rows(rows)
    usual = {EVERY: LR, ORDER: REORDERING_LR}
    (nothing,) = table[table["source"] == "from nothing"].to_dict("records")
    panels = [("TopK", EVERY), ("TopK", ORDER), ("BatchTopK", EVERY)]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axes, (source, mode) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        of = (table["source"] == source) & (table["mode"] == mode) & (table["lr"] == usual[mode])
        here = table[of].sort_values("steps")
        for k, colour in zip(DRAWN, COLOURS, strict=False):
            axes.plot(here["steps"], here[k], marker="o", color=colour, label=f"k={k}")
            axes.axhline(nothing[k], color=colour, linestyle=":", linewidth=1)
        axes.set_xscale("symlog", linthresh=30)
        axes.set_xlim(-3, 1.2 * FROM_NOTHING)
        axes.set_xticks([0, *STEPS], [str(steps) for steps in (0, *STEPS)])
        axes.set_xlabel("Steps of fine-tuning")
        axes.set_title(f"{source} for k={K}: {mode}", fontsize=10)
    figure.axes[0].set_ylabel("Explained variance, held out")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(DRAWN), frameon=False)
    save_png(figure, path)


if __name__ == "__main__":
    saved = json.loads((RESULTS / CONVERSION).read_text())
    draw(saved["conversion"]["rows"], PICTURE)
