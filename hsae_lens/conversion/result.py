"""What a conversion gives: the frontiers before and after, how far latents moved, the files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from hsae_lens._util.atomic_files import write_json
from hsae_lens._util.columns import QUALITIES, frontier_columns
from hsae_lens._util.tables import write_csv
from hsae_lens.conversion.config import SETTINGS_FILE, ConvertConfig
from hsae_lens.conversion.moved import movement
from hsae_lens.evaluation.plots import plot_frontier
from hsae_lens.releases.model_card import store_frontier, write_card
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

SOURCE_IN_ORDER, CONVERTED, SOURCE_ITSELF = "before", "after", "the source itself"


@dataclass(frozen=True)
class Conversion:
    """frontier: rows of ``before`` and ``after`` (and, of a JumpReLU, of the source itself).
    spent: rows of the converted SAE's mean budgets.
    moved: a row per latent (:func:`latents_moved`).  seen: what the run looked at on the way, step
    and explained variance at 1, 2, 4, … K.  steps, seconds: of the fine-tuning.
    """

    frontier: pd.DataFrame
    spent: pd.DataFrame
    moved: pd.DataFrame
    seen: list[tuple[int, list[float]]]
    steps: int
    seconds: float

    def __str__(self) -> str:
        """The two frontiers side by side, and how far latents moved, for a terminal."""
        rows = self.frontier
        names = [SOURCE_IN_ORDER, CONVERTED]
        both = rows[rows["sae"].isin(names)].pivot(index="k", columns="sae", values=list(QUALITIES))
        columns = [(of, name) for of in QUALITIES for name in names]
        lines = [both[columns].to_string(float_format=lambda value: f"{value:.3f}")]
        for row in rows[rows["sae"] == SOURCE_ITSELF].itertuples():
            lines.append(
                f"The source itself used {row.l0:.1f} latents on average: explained variance "
                f"{row.explained_variance:.3f}, recovered cross-entropy {row.ce_score:.3f}."
            )
        moved = movement(self.moved)
        lines.append(
            f"{self.steps} steps in {self.seconds:.0f} s. Decoder rows moved to a mean "
            f"cosine of {moved['cosine']:.3f} with the source's; {moved['top_kept']:.0%} of the "
            f"latents in use kept most of their top contexts, {moved['silent']:.1%} fell silent."
        )
        return "\n".join(lines)


def write_conversion(
    conversion: Conversion, after: HierarchicalTopKSAE, cfg: ConvertConfig, folder: Path
) -> None:
    """Leaves the SAE, its card, tables, picture and settings in a folder."""
    metadata, table = after.cfg.metadata, conversion.frontier
    metadata.training_time = (
        f"{conversion.seconds:.0f} s of fine-tuning, {conversion.steps} steps of {cfg.batch_size}"
    )
    metadata.source_licence = metadata.source_licence or "not stated"
    fixed = table[table["sae"] == CONVERTED].assign(rule="fixed", target=table["k"])
    rows = pd.concat([fixed.drop(columns="sae"), conversion.spent])
    store_frontier(after, rows, f"{cfg.text or 'the reference of CPython'}, held-out documents")
    after.save_model(folder)
    write_csv(table[frontier_columns("demo")], folder / "frontier.csv")
    write_csv(conversion.moved, folder / "latents.csv")
    title = f"{metadata.converted_from}, before and after {conversion.steps} steps"
    plot_frontier(table, folder / "frontier.png", title)
    load = f"sae = hsae_lens.HierarchicalTopKSAE.load_from_disk({json.dumps(cfg.out)})"
    card = write_card(after, cfg.out, str(metadata.hook_name), f"{cfg.out}", load)
    (folder / "README.md").write_text(card, encoding="utf-8")
    facts = {
        "settings": asdict(cfg),
        "steps": conversion.steps,
        "seconds": round(conversion.seconds, 1),
        "moved": movement(conversion.moved),
        "seen": conversion.seen,
    }
    write_json(facts, folder / SETTINGS_FILE)
