"""``hsae calibrate``: a saved SAE's thresholds, and what they spend on other text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from sae_lens.constants import SAE_CFG_FILENAME

from hsae_lens._util.atomic_files import write_json
from hsae_lens._util.paths import expand_home
from hsae_lens.evaluation.frontier.evaluate import evaluate_activations
from hsae_lens.models.devices import AUTO
from hsae_lens.models.opening import open_model_of
from hsae_lens.models.tokenizing import sample_tokens
from hsae_lens.objective.budgets import MeanBudget, powers_of_two
from hsae_lens.releases.model_card import store_frontier
from hsae_lens.releases.opening import open_hierarchical
from hsae_lens.sae.calibration import calibrate
from hsae_lens.sae.codes import masked_activations
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE


@dataclass
class CalibrateConfig:
    """What ``hsae calibrate`` takes beside the SAE; every field is a flag."""

    text: str | None = None
    """A local text, JSONL, CSV or parquet file, or a folder of them; best of the kind that the SAE
    will read. None is CPython's own language reference."""
    tokens: int = 32768
    """About how many tokens to look at: three quarters set the thresholds, the others show what
    they spend."""
    model: str | None = None
    """What to open: a hub name, a local folder, or smollm2-135m. None is what the SAE says it was
    trained on."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = AUTO
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""
    out: str | None = None
    """Folder for a calibrated copy. None writes into the SAE's own cfg.json."""


def calibrate_saved(where: str, cfg: CalibrateConfig) -> pd.DataFrame:
    """Calibrates a saved SAE (:func:`hsae_lens.calibrate`) with its model on a text.

    Its weights stay as they are. What mean budgets and fixed ones give on the sequences that did
    not set the thresholds is kept in its metadata, for its card.

    Returns:
        Those rows, :func:`evaluate_activations`' columns.

    Raises:
        ValueError: if it is no hierarchical SAE, a release without a folder to write to (``out``),
            ``out`` holds something, or for what :func:`hsae_lens.calibrate` refuses.
        FileNotFoundError: if there is no such SAE or text.
    """
    sae = open_hierarchical(where, cfg.device, "float32")  # as it is used, whatever it is kept in
    _check_place(where, cfg.out)
    model = open_model_of(sae, cfg.model, cfg.device, cfg.dtype)
    context = sae.cfg.metadata.context_size
    tokens, _ = sample_tokens(cfg.text, model.tokenizer, context, cfg.tokens)
    activations, sequences = masked_activations(sae, model, tokens)
    held = sequences % 4 == 3
    if not held.any():
        raise ValueError(
            f"{tokens.shape[0]} sequences of {tokens.shape[1]} tokens are too few: three of four "
            "set the thresholds and the fourth shows what they spend. Give more text (--tokens)."
        )
    calibrate(sae, activations[~held])
    budgets = powers_of_two(sae.cfg.k)
    table = evaluate_activations(
        sae, activations[held], [*budgets, *map(MeanBudget, budgets)], progress=False
    )
    text = f"{cfg.text or 'the reference of CPython'}, beside the text that set the thresholds"
    store_frontier(sae, table, text)
    _save(sae, expand_home(where), cfg.out)
    return table


def _check_place(where: str, out: str | None) -> None:
    if out is None and not expand_home(where).exists():
        raise ValueError(f"{where} is not in a folder of yours: give one for a copy (--out).")
    if out is None or not (folder := expand_home(out)).exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{out} is a file. Give a folder to write.")
    if any(folder.iterdir()):
        raise ValueError(f"{out} is not empty. Give another folder.")


def _save(sae: HierarchicalTopKSAE, folder: Path, out: str | None) -> None:
    if out is not None:
        sae.save_model(expand_home(out))
        return
    # Not save_model: the folder may hold a training checkpoint, which is to remain one.
    file = folder / SAE_CFG_FILENAME
    config = json.loads(file.read_text(encoding="utf-8"))
    metadata = sae.cfg.metadata
    config["calibration"] = sae.cfg.calibration
    config["metadata"] |= {"frontier": metadata.frontier, "definitions": metadata.definitions}
    write_json(config, file)
