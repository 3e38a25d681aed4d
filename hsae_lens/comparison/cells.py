"""A cell of a comparison: one SAE of a family, trained and judged, in a folder of its own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE, JumpReLUSAE
from sae_lens.config import SAETrainerConfig
from safetensors.torch import load_file, save_file

from hsae_lens._util.atomic_files import replacing_file, replacing_folder, write_json
from hsae_lens._util.tables import read_csv, write_csv
from hsae_lens.comparison.config import CompareConfig, shape_of
from hsae_lens.comparison.families import TRUNCATED, family, train
from hsae_lens.comparison.judging import JudgeSAE
from hsae_lens.comparison.material import Material
from hsae_lens.evaluation import evaluate_activations
from hsae_lens.objective.budgets import Budget, MeanBudget
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

FIRST = 16384  # training tokens whose mean is everybody's first b_dec, and that set thresholds

SETTINGS = "settings.json"

WARM_UP, DECAY = 20, 5  # a 20th of the steps up, the last fifth down

DEAD_AFTER = 5  # a latent that was silent for a fifth of the steps is dead; SAELens' 1000 at most


@dataclass(frozen=True, order=True)
class Cell:
    """family, for which budget it is trained (K where one serves all), with what rate and seed."""

    family: str
    budget: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.family}-k{self.budget}-lr{self.lr:g}-seed{self.seed}"


class CellFolder:
    """What a cell leaves: the SAE and its settings, then rows and errors on held-out text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_trained(self) -> bool:
        return self.folder.exists()

    @property
    def is_judged(self) -> bool:
        return (self.folder / "rows.csv").exists()

    def is_judged_at(self, budgets: Sequence[int]) -> bool:
        """Whether no budget is missing: an SAE for all may have been judged at fewer before."""
        if not self.is_judged:
            return False
        rows, cell = self.rows(), self.cell
        alone = family(cell.family).specialist and cell.budget < budgets[-1]
        has_one = rows["place"].max() == 0  # a stock SAE's
        return alone or has_one or set(budgets) <= set(rows["k"])

    @property
    def settings(self) -> dict[str, Any]:
        """``cell``, ``sae`` and ``trainer`` as they were, ``seconds`` of training."""
        read: dict[str, Any] = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        return read

    @property
    def cell(self) -> Cell:
        return Cell(**self.settings["cell"])

    def sae(self, device: str) -> SAE[Any]:
        return SAE.load_from_disk(self.folder, device=device)

    def rows(self) -> pd.DataFrame:
        """A row per kind of text, rule and budget."""
        return read_csv(self.folder / "rows.csv")

    def errors(self) -> dict[str, torch.Tensor]:
        """By kind of text ``[rows of that kind, documents]``: squared errors, summed over tokens.

        A row's ``place`` says which of them are its own.
        """
        return load_file(self.folder / "errors.safetensors")


def train_cell(cell: Cell, cfg: CompareConfig, material: Material, place: CellFolder) -> None:
    """Trains a cell's SAE; its folder appears when that is done."""
    started = time.perf_counter()
    sae, settings = _trained(cell, cfg, material)
    settings["seconds"] = round(time.perf_counter() - started, 1)
    with replacing_folder(place.folder) as fresh:
        sae.save_inference_model(fresh)
        if isinstance(saved := CellFolder(fresh).sae(cfg.device), JumpReLUSAE):
            spend_on_average(saved, cell.budget, material.train[:FIRST].float())
            saved.save_model(fresh)
        write_json(settings, fresh / SETTINGS)


def judge_cell(cfg: CompareConfig, judge: JudgeSAE, place: CellFolder) -> None:
    """Judges a trained SAE on held-out text; the rows appear when all is done."""
    sae, cell = place.sae(cfg.device), place.cell
    judged = judge(sae, _budgets(sae, cell, cfg))
    with replacing_file(place.folder / "errors.safetensors") as fresh:
        save_file(judged.errors, fresh)
    rows = judged.rows
    if "rule" not in rows:  # of a stock SAE: it has one budget, the one it was trained for
        rule = "mean" if isinstance(sae, JumpReLUSAE) else "fixed"
        rows = rows.assign(k=cell.budget, rule=rule)
    write_csv(_described(rows, cell, place.settings), place.folder / "rows.csv")


@torch.no_grad()
def spend_on_average(sae: JumpReLUSAE, k: float, activations: torch.Tensor) -> None:
    """Sets one threshold for all latents, at which k are used on average on ``[n, d_in]``.

    As :func:`hsae_lens.calibrate` does for hierarchical SAEs. BatchTopK's own is a running mean of
    the smallest activations in training, which in a short run has not arrived yet.
    """
    sae.threshold.zero_()
    kept = round(k * len(activations))
    largest = activations.new_empty(0)
    for x in activations.split(1024):
        values = sae.encode(x.to(sae.device)).flatten().cpu()
        largest = torch.cat([largest, values[values > 0]])
        largest = largest.topk(min(kept + 1, len(largest)), sorted=True).values
    sae.threshold.fill_(float(largest[-1]))


def validated(cfg: CompareConfig, material: Material, place: CellFolder) -> float:
    """Mean explained variance of validation tokens at the budgets that a cell is for."""
    sae, cell = place.sae(cfg.device), place.cell
    budgets = [b for b in _budgets(sae, cell, cfg) if isinstance(b, int)]
    if family(cell.family).specialist:
        budgets = budgets[-1:]
    table = evaluate_activations(sae, material.validation.float(), budgets, progress=False)
    return float(table["explained_variance"].mean())


def _trained(cell: Cell, cfg: CompareConfig, material: Material) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(cell.seed)
    sae = family(cell.family).build(shape_of(cfg, material.train.shape[1]), cell.budget)
    trainer = SAETrainerConfig(
        total_training_samples=cfg.steps * cfg.batch_size,
        train_batch_size_samples=cfg.batch_size,
        lr=cell.lr,
        lr_end=cell.lr / 10,
        lr_warm_up_steps=cfg.steps // WARM_UP,
        lr_decay_steps=cfg.steps // DECAY,
        dead_feature_window=min(1000, max(1, cfg.steps // DEAD_AFTER)),
        device=cfg.device,
    )
    if math.isfinite(material.max_norm):
        sae.cfg.metadata.max_norm = material.max_norm
    sae.cfg.metadata.model_name = cfg.model
    sae.cfg.metadata.hook_name = cfg.hook_name
    settings = {"cell": asdict(cell), "sae": sae.cfg.to_dict(), "trainer": asdict(trainer)}
    data = material.batches(cfg.batch_size, cell.seed)
    return train(sae, data, trainer, material.train[:FIRST].float()), settings


def _budgets(sae: SAE[Any], cell: Cell, cfg: CompareConfig) -> Sequence[Budget]:
    """The budgets to judge it at: a specialist's own, and all of the one for K, which is cut."""
    if not isinstance(sae, HierarchicalTopKSAE):  # its own k, or its own threshold: all it has
        return [getattr(sae.cfg, "k", sae.cfg.d_sae)]
    at_all = not family(cell.family).specialist or cell.budget == cfg.budgets[-1]
    fixed = list(cfg.budgets) if at_all else [cell.budget]
    return [*fixed, *(MeanBudget(k) for k in fixed)]


def _described(rows: pd.DataFrame, cell: Cell, settings: dict[str, Any]) -> pd.DataFrame:
    """The rows with what they are of, for the tables of all cells."""
    name = pd.Series(cell.family, index=rows.index)
    if family(cell.family).specialist:
        name = name.where(rows["k"] == cell.budget, TRUNCATED)
    of: dict[str, Any] = asdict(cell) | {"family": name, "seconds": settings["seconds"]}
    of["trained_for"] = of.pop("budget")
    of["steps"] = (
        settings["trainer"]["total_training_samples"]
        // settings["trainer"]["train_batch_size_samples"]
    )
    rows = rows.drop(columns="target", errors="ignore")
    return rows.assign(**of, place=rows.groupby("text").cumcount())
