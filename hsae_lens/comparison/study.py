"""All cells of a comparison, those that are there already left as they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hsae_lens._util.atomic_files import write_json
from hsae_lens.comparison.cells import Cell, CellFolder, judge_cell, train_cell, validated
from hsae_lens.comparison.config import CompareConfig, settings_that_must_agree
from hsae_lens.comparison.families import family, trained_for
from hsae_lens.comparison.judging import JudgeSAE
from hsae_lens.comparison.material import Material, is_stored, read_material, store_material

logger = logging.getLogger(__name__)


class Study:
    """The folder of a comparison: what all SAEs share, the activations, a cell for each SAE."""

    def __init__(self, cfg: CompareConfig) -> None:
        self.cfg, self.folder = cfg, Path(cfg.out)

    @property
    def settings_file(self) -> Path:
        return self.folder / "study.json"

    def check(self) -> None:
        """Sees that the folder is of this comparison, if it is of one.

        Raises:
            ValueError: if the folder holds a comparison with other settings.
        """
        file, given = self.settings_file, settings_that_must_agree(self.cfg)
        if not file.exists():
            return
        begun = _read_json(file)
        differ = [name for name in given if begun.get(name, given[name]) != given[name]]
        if differ:
            name = differ[0]
            raise ValueError(
                f"{self.folder} was begun with {name} {begun[name]}, not {given[name]}: SAEs "
                "of one comparison share all but families, seeds and budgets below K. Give another "
                "folder (out), or the settings that it was begun with."
            )

    def material(self, make: Callable[[], Material]) -> Material:
        """The activations that an earlier command kept, or those that are made now."""
        folder = self.folder / "activations"
        if not (self.settings_file.exists() and is_stored(folder)):
            made = make()
            write_json(settings_that_must_agree(self.cfg), self.settings_file)
            store_material(made, folder)
        return read_material(folder)  # as a command that goes on will read it

    def cell(self, cell: Cell) -> CellFolder:
        return CellFolder(self.folder / "cells" / cell.name)

    def chosen_rates(self) -> dict[str, dict[str, float]]:
        """By family what each learning rate reached on validation tokens, and the ``best``."""
        file = self.folder / "learning_rates.json"
        return _read_json(file) if file.exists() else {}

    def run(self, material: Material, judge: JudgeSAE) -> None:
        """Trains and judges what is missing: what decides learning rates first, then by seeds."""
        self._choose_rates(material)
        budgets = self.cfg.budgets
        todo = [cell for cell in self.plan() if not self.cell(cell).is_judged_at(budgets)]
        for cell in tqdm(todo, "SAEs", unit="SAE"):
            self._train(cell, material)
            judge_cell(self.cfg, judge, self.cell(cell))

    def plan(self) -> Iterator[Cell]:
        """Every cell of the final tables, all families of a seed before the next seed."""
        rates = self.chosen_rates()
        for seed in range(self.cfg.seeds):
            for name in self.cfg.families:
                for budget in trained_for(name, self.cfg.budgets):
                    yield Cell(name, budget, rates[name]["best"], seed)

    def _choose_rates(self, material: Material) -> None:
        """The learning rate of each family: the best on validation tokens, at its middle budget."""
        for name in self.cfg.families:
            if name in self.chosen_rates():
                continue
            budgets = trained_for(name, self.cfg.budgets)
            cells = [
                Cell(name, budgets[len(budgets) // 2], lr, 0) for lr in self.cfg.learning_rates
            ]
            for cell in cells:
                self._train(cell, material)
            scores = {
                f"{cell.lr:g}": validated(self.cfg, material, self.cell(cell)) for cell in cells
            }
            best = float(max(scores, key=scores.__getitem__))
            logger.info("%s: learning rate %g, of %s.", name, best, scores)
            if len(cells) > 1 and best in (cells[0].lr, cells[-1].lr):
                logger.warning(
                    "%s: the best learning rate is at the end of those tried; another may be "
                    "better (learning_rates).",
                    name,
                )
            write_json(
                {**self.chosen_rates(), name: {**scores, "best": best}},
                self.folder / "learning_rates.json",
            )

    def _train(self, cell: Cell, material: Material) -> None:
        if not self.cell(cell).is_trained:
            logger.info("%s: %s", cell.name, family(cell.family).about)
            train_cell(cell, self.cfg, material, self.cell(cell))

    def chosen(self) -> list[CellFolder]:
        """The cells that are judged, of this and earlier commands: those of the chosen rates."""
        rates = self.chosen_rates()
        folders = map(CellFolder, sorted((self.folder / "cells").glob("[!.]*")))
        judged = [(place, place.cell) for place in folders if place.is_judged]
        return [p for p, cell in judged if cell.lr == rates.get(cell.family, {}).get("best")]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, or its folder.") from error
