"""All cells of a comparison, those that are there already left as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from hsae_lens._util.atomic_files import write_json
from hsae_lens.comparison.cells import (
    Cell,
    CellFolder,
    judge_cell,
    read_settings,
    train_cell,
    validated,
)
from hsae_lens.comparison.config import CompareConfig, settings_that_must_agree
from hsae_lens.comparison.families import family, trained_for
from hsae_lens.comparison.judging import JudgeSAE
from hsae_lens.comparison.material import Material, is_stored, read_material, store_material

logger = logging.getLogger(__name__)


def tuned_together(name: str, budget: int) -> str:
    """What shares a learning rate: a family, of specialists only those for one budget.

    Small budgets want larger rates: at one for all, those for few latents would be weaker rivals.
    """
    return f"{name} k={budget}" if family(name).specialist else name


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
            ValueError: if the folder holds a comparison with other settings, or unknown ones.
        """
        file, given = self.settings_file, settings_that_must_agree(self.cfg)
        if not file.exists():
            if any((self.folder / "cells").glob("[!.]*")):
                raise ValueError(
                    f"{self.folder} holds SAEs of a comparison, and no {file.name} that says of "
                    "which: give another folder (out), or remove the whole folder."
                )
            return
        begun = read_settings(file, f"remove the whole folder {self.folder}")
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
        """What each learning rate reached on validation tokens, and the ``best``: by
        :func:`tuned_together`."""
        file = self.folder / "learning_rates.json"
        return read_settings(file, "remove it, and they are chosen again") if file.exists() else {}

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
            for name in dict.fromkeys(self.cfg.families):
                for budget in trained_for(name, self.cfg.budgets):
                    yield Cell(name, budget, rates[tuned_together(name, budget)]["best"], seed)

    def _choose_rates(self, material: Material) -> None:
        """The learning rate of each SAE to train: the best on validation tokens, at its budgets."""
        for name in dict.fromkeys(self.cfg.families):
            for budget in trained_for(name, self.cfg.budgets):
                if tuned_together(name, budget) not in self.chosen_rates():
                    self._choose_rate(name, budget, material)

    def _choose_rate(self, name: str, budget: int, material: Material) -> None:
        cells = [Cell(name, budget, lr, 0) for lr in self.cfg.learning_rates]
        for cell in cells:
            self._train(cell, material)
        reached = {cell.lr: validated(self.cfg, material, self.cell(cell)) for cell in cells}
        best, what = max(reached, key=reached.__getitem__), tuned_together(name, budget)
        scores = {f"{lr:g}": score for lr, score in reached.items()}
        logger.info("%s: learning rate %g, of %s.", what, best, scores)
        if len(cells) > 1 and best in (cells[0].lr, cells[-1].lr):
            logger.warning(
                "%s: the best learning rate is at the end of those tried; another may be better "
                "(learning_rates).",
                what,
            )
        write_json(
            {**self.chosen_rates(), what: {**scores, "best": best}},
            self.folder / "learning_rates.json",
        )

    def _train(self, cell: Cell, material: Material) -> None:
        if not self.cell(cell).is_trained:
            logger.info("%s: %s", cell.name, family(cell.family).about)
            train_cell(cell, self.cfg, material, self.cell(cell))

    def chosen(self) -> list[CellFolder]:
        """The cells that are judged, of this and earlier commands: those of the chosen rates."""
        folders = map(CellFolder, sorted((self.folder / "cells").glob("[!.]*")))
        return [place for place in folders if place.is_judged and self._has_best_rate(place.cell)]

    def _has_best_rate(self, cell: Cell) -> bool:
        # By name: in files of before, "best" has six digits, as names have.
        key = tuned_together(cell.family, cell.budget)
        best = self.chosen_rates().get(key, {}).get("best")
        return best is not None and replace(cell, lr=best).name == cell.name
