"""The folder of a pilot: what it has prepared and measured, to go on with if it is interrupted."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hsae_lens._util.atomic_files import replacing_file, write_json
from hsae_lens.comparison.material import Material, is_stored, read_material, store_material
from hsae_lens.pilot.config import MAY_CHANGE, PilotConfig
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.planning import PilotPlan
from hsae_lens.pilot.search import Measured, PilotSettings, Point


class PilotFolder:
    """What is where.

    state: settings, look, plan, and the seconds that these took.  points: a file for each.  saes:
    the two at the end.  text: what the recipe trains on where no text was given.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.state, self.points = self.path / "pilot.json", self.path / "points"
        self.activations, self.saes = self.path / "activations", self.path / "saes"
        self.text = self.path / "text.jsonl"

    def check(self, cfg: PilotConfig) -> None:
        """Sees that the folder is of this pilot, or of none.

        Raises:
            ValueError: if it is of a pilot with other settings, holds other files, or is damaged.
        """
        if not self.state.exists():
            ours = {self.activations.name, self.text.name}  # of one stopped while it prepared
            if self.path.is_dir() and {file.name for file in self.path.iterdir()} - ours:
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
        """Seconds of what is here."""
        if not self.state.exists():
            return 0.0
        points = [_read_json(file) for file in self.points.glob("[!.]*.json")]
        return float(self._read_state()["seconds"]) + sum(point["seconds"] for point in points)

    def prepared(self) -> tuple[Look, PilotPlan, Material] | None:
        """What :meth:`keep` kept, or None."""
        if not (self.state.exists() and is_stored(self.activations)):
            return None
        state = self._read_state()
        return Look(**state["look"]), PilotPlan(**state["plan"]), read_material(self.activations)

    def keep(
        self, cfg: PilotConfig, look: Look, plan: PilotPlan, material: Material, seconds: float
    ) -> None:
        """Keeps what a pilot begins with; last the file by which it is known."""
        store_material(material, self.activations)
        kept = {"settings": _that_must_agree(cfg), "look": asdict(look), "plan": asdict(plan)}
        write_json(kept | {"seconds": seconds}, self.state)

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
        kept = _read_json(file)
        try:
            kept["explained"] = {int(k): float(v) for k, v in kept["explained"].items()}
            of = kept.pop("point")
            return Measured(Point(**{**of, "settings": PilotSettings(**of["settings"])}), **kept)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(file, error) from error

    def _read_state(self) -> dict[str, Any]:
        state = _read_json(self.state)
        if missing := {"settings", "look", "plan", "seconds"} - set(state):
            raise _damaged(self.state, f"it lacks {', '.join(sorted(missing))}")
        return state


def _that_must_agree(cfg: PilotConfig) -> dict[str, Any]:
    return {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in MAY_CHANGE}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, why: object) -> ValueError:
    return ValueError(f"{file} is damaged ({why}): remove it, and it is made again.")
