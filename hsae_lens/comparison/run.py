"""``hsae compare``: families trained and judged alike, in a folder that can be added to."""

from __future__ import annotations

from typing import Any

import pandas as pd

from hsae_lens._util.columns import stamp
from hsae_lens._util.tables import write_csv
from hsae_lens.comparison.config import (
    CompareConfig,
    check_compare_settings,
    settings_that_must_agree,
    synthetic_settings,
    with_presets,
)
from hsae_lens.comparison.judging import judge_with
from hsae_lens.comparison.material import Material, collect, synthesize
from hsae_lens.comparison.page import write_comparison
from hsae_lens.comparison.plots import plot_comparison
from hsae_lens.comparison.regret import (
    MERITS,
    all_rows,
    cost_table,
    frontier_table,
    regret_table,
)
from hsae_lens.comparison.study import Study
from hsae_lens.comparison.synthetic import synthetic_model
from hsae_lens.models.opening import open_model

TABLE_FILES = {"frontier": "frontier.csv", "cost": "cost.csv"} | {
    f"regret {of}": f"regret_{of}.csv" for of in MERITS
}
"""The files of the tables."""


def run_compare(cfg: CompareConfig) -> dict[str, pd.DataFrame]:
    """Trains and judges what is missing in the folder, and makes tables, picture and page anew.

    Every SAE has the same activations, steps, optimizer and first b_dec; those of one seed see the
    same batches in the same order. An interrupted comparison goes on with the SAE it was at.

    Leaves in ``out``: ``study.json``, ``activations/``, ``cells/`` (an SAE each, with its settings
    and rows), ``learning_rates.json``, the files of :data:`TABLE_FILES`, ``compare.png`` and
    ``compare.html``.

    Returns:
        The tables: ``frontier``, ``cost``, ``regret explained_variance``, ``regret ce_score``.

    Raises:
        ValueError: for settings that cannot be, a folder of another comparison, or too little text
            to train on or for intervals; before anything is trained.
        FileNotFoundError: if there is no such text.
    """
    cfg = with_presets(cfg)
    check_compare_settings(cfg)
    study = Study(cfg)
    study.check()
    if cfg.is_synthetic:
        synthetic = synthetic_model(synthetic_settings(cfg))
        material = study.material(lambda: synthesize(cfg, synthetic))
        judge = judge_with(material, synthetic=synthetic)
    else:
        model = open_model(cfg.model, cfg.device, cfg.dtype)
        material = study.material(lambda: collect(cfg, model))
        judge = judge_with(material, model if cfg.ce_tokens else None)
    study.run(material, judge)
    return _write(study, material)


def _write(study: Study, material: Material) -> dict[str, pd.DataFrame]:
    cells, cfg = study.chosen(), study.cfg
    rows = all_rows(cells)
    tables = {"frontier": frontier_table(rows), "cost": cost_table(rows)}
    for of in [of for of in MERITS if of in rows]:
        tables[f"regret {of}"] = regret_table(cells, material, of)
    for name, table in tables.items():
        write_csv(table, study.folder / TABLE_FILES[name])
    text, regret = next(iter(material.held)), tables["regret explained_variance"]
    where = cfg.model if cfg.is_synthetic else f"{cfg.model}, {cfg.hook_name}"
    title = f"{where}, {cfg.d_sae} latents, {cfg.steps} steps; {text}"
    plot_comparison(tables["frontier"], regret, text, study.folder / "compare.png", title)
    facts: dict[str, Any] = {
        "settings": settings_that_must_agree(cfg),
        "learning_rates": study.chosen_rates(),
        "definitions": stamp("comparison"),
    }
    write_comparison(tables, facts, study.folder / "compare.html")
    return tables
