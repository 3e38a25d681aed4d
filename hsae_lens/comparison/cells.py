"""A cell of a comparison: one SAE of a family, trained and judged, in a folder of its own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE, JumpReLUSAE
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hsae_lens._util.atomic_files import replacing_file, replacing_folder, write_json
from hsae_lens._util.tables import read_csv, write_csv
from hsae_lens.comparison.config import CompareConfig, shape_of
from hsae_lens.comparison.families import CUT, TRUNCATED, family, train, trainer_config
from hsae_lens.comparison.judging import JudgeSAE
from hsae_lens.comparison.material import Material
from hsae_lens.evaluation import evaluate_activations
from hsae_lens.objective.budgets import Budget, MeanBudget
from hsae_lens.sae.calibration import calibrate
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

FIRST = 16384  # training tokens whose mean is everybody's first b_dec, and that set thresholds

SETTINGS, ROWS, ERRORS = "settings.json", "rows.csv", "errors.safetensors"

OF_A_ROW = ["family", "trained_for", "seed", "text", "rule", "k", "place"]

AS_A_WHOLE = "remove the folder that it is in, and the SAE is trained again"


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

    def serves_all(self, k: int) -> bool:
        """Whether it is judged at every budget up to K, here ``k``: one for all, or the one cut."""
        return not family(self.family).specialist or (self.family == CUT and self.budget == k)


class CellFolder:
    """What a cell leaves: the SAE and its settings, then rows and errors on held-out text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_trained(self) -> bool:
        return self.folder.exists()

    @property
    def is_judged(self) -> bool:
        return (self.folder / ROWS).exists()

    def is_judged_at(self, budgets: Sequence[int]) -> bool:
        """Whether no budget is missing: an SAE for all may have been judged at fewer before."""
        if not self.is_judged:
            return False
        rows = self.rows()
        has_one = rows["place"].max() == 0  # a stock SAE's
        one_is_enough = has_one or not self.cell.serves_all(budgets[-1])
        return one_is_enough or set(budgets) <= set(rows["k"])

    @property
    def settings(self) -> dict[str, Any]:
        """``cell``, ``sae`` and ``trainer`` as they were, ``seconds`` of training."""
        return read_settings(self.folder / SETTINGS, AS_A_WHOLE)

    @property
    def cell(self) -> Cell:
        settings = self.settings
        with naming(self.folder / SETTINGS, AS_A_WHOLE):
            return Cell(**settings["cell"])

    def sae(self, device: str) -> SAE[Any]:
        return SAE.load_from_disk(self.folder, device=device)

    def rows(self) -> pd.DataFrame:
        """A row per kind of text, rule and budget; ValueError if the file is damaged."""
        with naming(file := self.folder / ROWS, "remove it, and the SAE is judged again"):
            rows = read_csv(file)
            _ = rows[OF_A_ROW]
            return rows

    def errors(self) -> dict[str, torch.Tensor]:
        """By kind of text ``[rows of that kind, documents]``: squared errors, summed over tokens.

        A row's ``place`` says which of them are its own.
        """
        return load_file(self.folder / ERRORS)


@contextmanager
def naming(file: Path, fix: str) -> Iterator[None]:
    """What is wrong inside is said of a damaged ``file``, as ValueError, and how to mend it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({error.__cause__ or error}): {fix}.") from error


def read_settings(file: Path, fix: str) -> dict[str, Any]:
    """A file of settings; ValueError, with the ``fix``, if it is damaged."""
    with naming(file, fix):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def train_cell(cell: Cell, cfg: CompareConfig, material: Material, place: CellFolder) -> None:
    """Trains a cell's SAE; its folder appears when that is done."""
    started = time.perf_counter()
    sae, settings = _trained(cell, cfg, material)
    settings["seconds"] = round(time.perf_counter() - started, 1)
    with replacing_folder(place.folder) as fresh:
        sae.save_inference_model(fresh)
        _set_thresholds(CellFolder(fresh), cell, cfg.device, material.train[:FIRST].float())
        write_json(settings, fresh / SETTINGS)


def judge_cell(cfg: CompareConfig, judge: JudgeSAE, place: CellFolder) -> None:
    """Judges a trained SAE on held-out text, also at the budgets at which it was judged before.

    The rows appear when all is done.
    """
    sae, cell = place.sae(cfg.device), place.cell
    before = place.rows()["k"].to_list() if place.is_judged else []
    judged = judge(sae, _budgets(sae, cell, sorted({*cfg.budgets, *before})))
    rows = judged.rows
    if "rule" not in rows:  # of a stock SAE: it has one budget, the one it was trained for
        rule = "mean" if isinstance(sae, JumpReLUSAE) else "fixed"
        rows = rows.assign(k=cell.budget, rule=rule)
    rows = _described(rows, cell, place.settings)
    with replacing_file(place.folder / ERRORS) as fresh:
        save_file(judged.errors, fresh)
        (place.folder / ROWS).unlink(missing_ok=True)  # of the former errors, which go now
    write_csv(rows, place.folder / ROWS)


def _set_thresholds(place: CellFolder, cell: Cell, device: str, x: torch.Tensor) -> None:
    """Sets the saved SAE's threshold, or thresholds, on the same ``[n, d_in]`` in every family."""
    sae = place.sae(device)
    if isinstance(sae, JumpReLUSAE):
        spend_on_average(sae, cell.budget, x)
    elif isinstance(sae, HierarchicalTopKSAE):
        calibrate(sae, x, progress=False)
    else:
        return
    sae.save_model(place.folder)


@torch.no_grad()
def spend_on_average(sae: JumpReLUSAE, k: float, activations: torch.Tensor) -> None:
    """Sets one threshold for all latents, at which k are used on average on ``[n, d_in]``.

    As :func:`hsae_lens.calibrate` does for hierarchical SAEs: 0 where fewer are active. BatchTopK's
    own is a running mean of the smallest activations in training, which in a short run has not
    arrived yet.
    """
    sae.threshold.zero_()
    kept = round(k * len(activations))
    largest = activations.new_empty(0)
    for x in activations.split(1024):
        values = sae.encode(x.to(sae.device)).flatten().cpu()
        largest = torch.cat([largest, values[values > 0]])
        largest = largest.topk(min(kept + 1, len(largest)), sorted=True).values
    sae.threshold.fill_(float(largest[kept]) if len(largest) > kept else 0.0)


def validated(cfg: CompareConfig, material: Material, place: CellFolder) -> float:
    """Mean explained variance of validation tokens at the budgets that a cell is for."""
    sae, cell = place.sae(cfg.device), place.cell
    budgets = [b for b in _budgets(sae, cell, cfg.budgets) if isinstance(b, int)]
    if family(cell.family).specialist:
        budgets = budgets[-1:]
    table = evaluate_activations(sae, material.validation.float(), budgets, progress=False)
    return float(table["explained_variance"].mean())


def _trained(cell: Cell, cfg: CompareConfig, material: Material) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(cell.seed)
    sae = family(cell.family).build(shape_of(cfg, material.train.shape[1]), cell.budget)
    trainer = trainer_config(cfg.steps, cfg.batch_size, cell.lr, cfg.device)
    if math.isfinite(material.max_norm):
        sae.cfg.metadata.max_norm = material.max_norm
    sae.cfg.metadata.model_name = cfg.model
    sae.cfg.metadata.hook_name = cfg.hook_name
    settings = {"cell": asdict(cell), "sae": sae.cfg.to_dict(), "trainer": asdict(trainer)}
    data = material.batches(cfg.batch_size, cell.seed)
    return train(sae, data, trainer, material.train[:FIRST].float()), settings


def _budgets(sae: SAE[Any], cell: Cell, asked: Sequence[int]) -> Sequence[Budget]:
    """The budgets to judge it at, of those that are ``asked``, or its own."""
    if not isinstance(sae, HierarchicalTopKSAE):  # its own k, or its own threshold: all it has
        return [getattr(sae.cfg, "k", sae.cfg.d_sae)]
    fixed = list(asked) if cell.serves_all(asked[-1]) else [cell.budget]
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
