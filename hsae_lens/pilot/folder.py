"""The folder of a pilot: what it has prepared and measured, to go on with if it is interrupted."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hsae_lens._util.atomic_files import replacing_file, write_json
from hsae_lens._util.paths import expand_home
from hsae_lens.comparison.cells import naming, read_settings
from hsae_lens.comparison.material import (
    OTHER_KIND,
    SAME_KIND,
    Material,
    is_stored,
    read_material,
    store_material,
)
from hsae_lens.pilot.config import MAY_CHANGE, PilotConfig
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.planning import PilotPlan
from hsae_lens.pilot.search import Measured, PilotSettings, Point

AGAIN = "remove it, and it is made again"


class PilotFolder:
    """What is where.

    state: settings, look and plan.  time: the seconds spent so far.  end: what the trainings at the
    end are.  points: a file for each.  saes: of the end.  text: what the recipe trains on where no
    text was given.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expand_home(path).absolute()
        self.state, self.time = self.path / "pilot.json", self.path / "time.json"
        self.points, self.end = self.path / "points", self.path / "end.json"
        self.activations, self.saes = self.path / "activations", self.path / "saes"
        self.text = self.path / "text.jsonl"

    def check(self, cfg: PilotConfig) -> None:
        """Sees that the folder is of this pilot, or of none.

        Raises:
            ValueError: if it is of a pilot with other settings, holds other files, or is damaged.
        """
        if not self.state.exists():
            ours = {self.activations.name, self.text.name}  # of one stopped while it prepared
            there = {f.name for f in self.path.iterdir()} if self.path.is_dir() else set()
            if [name for name in there - ours if not name.startswith(".")]:
                raise ValueError(
                    f"{self.path} holds files that are not of a pilot: give another folder (out)."
                )
            return
        given, begun = _that_must_agree(cfg), self._read_state()["settings"]
        differ = [name for name in given if begun.get(name, given[name]) != given[name]]
        if differ:
            name = differ[0]
            raise ValueError(
                f"The pilot in {self.path} was begun with {name} {begun[name]}, not {given[name]}: "
                "give another folder (out), or the settings that it was begun with."
            )

    def spent(self) -> float:
        """Seconds that earlier commands took, up to the last thing that they kept."""
        if not (self.state.exists() and self.time.exists()):
            return 0.0
        with naming(self.time, AGAIN):
            return float(read_settings(self.time, AGAIN)["seconds"])

    def keep_time(self, seconds: float) -> None:
        write_json({"seconds": seconds}, self.time)

    def prepared(self) -> tuple[Look, PilotPlan, Material] | None:
        """What :meth:`keep` kept, or None.

        Raises:
            ValueError: if it is damaged.
        """
        if not (self.state.exists() and is_stored(self.activations)):
            return None
        state = self._read_state()
        with naming(self.state, AGAIN):
            look, plan = Look(**state["look"]), PilotPlan(**state["plan"])
        with naming(self.activations, AGAIN):
            material = read_material(self.activations)
            _ = material.held[SAME_KIND], material.held[OTHER_KIND]
        return look, plan, material

    def steps_at_the_end(self, best: PilotSettings, usual: int) -> int:
        """The steps of trainings that may be under way already, else the ``usual`` ones, kept."""
        if self.end.exists():
            with naming(self.end, AGAIN):
                kept = read_settings(self.end, AGAIN)
                if kept["best"] == asdict(best):
                    return int(kept["steps"])
        write_json({"best": asdict(best), "steps": usual}, self.end)
        return usual

    def keep(self, cfg: PilotConfig, look: Look, plan: PilotPlan, material: Material) -> None:
        """Keeps what a pilot begins with; last the file by which it is known."""
        store_material(material, self.activations)
        kept = {"settings": _that_must_agree(cfg), "look": asdict(look), "plan": asdict(plan)}
        write_json(kept, self.state)

    def keep_text(self, documents: list[str]) -> None:
        """Keeps the text where ``hsae train`` can read it."""
        with replacing_file(self.text) as fresh:
            rows = (json.dumps({"text": document}) for document in documents)
            fresh.write_text("\n".join(rows) + "\n", encoding="utf-8")

    def write_point(self, measured: Measured) -> None:
        write_json(asdict(measured), self.points / f"{measured.point.name}.json")

    def read_point(self, point: Point) -> Measured | None:
        """What :meth:`write_point` wrote, or None.

        Raises:
            ValueError: if the file is damaged.
        """
        file = self.points / f"{point.name}.json"
        if not file.exists():
            return None
        with naming(file, AGAIN):
            kept = read_settings(file, AGAIN)
            kept["explained"] = {int(k): float(v) for k, v in kept["explained"].items()}
            of = kept.pop("point")
            return Measured(Point(**{**of, "settings": PilotSettings(**of["settings"])}), **kept)

    def _read_state(self) -> dict[str, Any]:
        with naming(self.state, AGAIN):
            state = read_settings(self.state, AGAIN)
            _ = state["settings"], state["look"], state["plan"]
            return state


def _that_must_agree(cfg: PilotConfig) -> dict[str, Any]:
    return {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in MAY_CHANGE}
