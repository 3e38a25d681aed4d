"""The recipe that a pilot ends with: flags of ``hsae train``, each with where it comes from."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from hsae_lens._util.atomic_files import replacing_file
from hsae_lens._util.paths import expand_home
from hsae_lens.comparison.families import trainer_config
from hsae_lens.models.opening import local_folder
from hsae_lens.pilot.config import PilotConfig
from hsae_lens.pilot.full_run import STORED_PROMPTS, mixed_sequences
from hsae_lens.pilot.look import Look
from hsae_lens.pilot.search import PilotSettings
from hsae_lens.training.checks import HOOK_Z

Line = tuple[str, Any, str]


def recipe_lines(cfg: PilotConfig, settings: PilotSettings, look: Look, text: Path) -> list[Line]:
    """Flag, value, and a comment; in the order of the file."""
    schedule = trainer_config(cfg.full_steps, cfg.batch_size, settings.lr, cfg.device)
    out, same = expand_home(cfg.out).absolute(), "as in the pilot"
    asked, settled = "as asked", "settled by the pilot"
    lines: list[Line] = [
        ("model_name", str(local_folder(cfg.model) or cfg.model), asked),
        ("hook_name", cfg.hook_name, asked),
        ("dataset_path", str(text), asked),
        ("is_dataset_tokenized", False, "a fact about the text"),
        ("training_tokens", cfg.training_tokens, asked),
        ("d_in", look.d_in, "a fact about the model"),
        ("d_sae", settings.d_sae, asked),
        ("k", settings.k, asked),
        ("budget_weights", settings.budget_weights, settled),
        ("lr", settings.lr, settled),
        ("aux_loss_coefficient", settings.aux_loss_coefficient, settled),
        ("lr_warm_up_steps", schedule.lr_warm_up_steps, f"{same}: a twentieth"),
        ("lr_decay_steps", schedule.lr_decay_steps, f"{same}: the last fifth"),
        ("lr_end", float(f"{schedule.lr_end:.3g}"), f"{same}: a tenth"),
        ("dead_feature_window", schedule.dead_feature_window, f"{same}: a fifth, 1000 at most"),
        ("train_batch_size_tokens", cfg.batch_size, asked),
        ("context_size", cfg.context_size, asked),
        ("exclude_special_tokens", True, same),
        ("store_batch_size_prompts", STORED_PROMPTS, "our choice"),
        (
            "n_batches_in_buffer",
            mixed_sequences(cfg.context_size),
            "our choice: sequences whose tokens are mixed",
        ),
        ("model_dtype", cfg.dtype, asked),
        ("device", cfg.device, asked),
        ("checkpoint_path", str(out / "checkpoints"), "our choice"),
        ("output_path", str(out / "sae"), "our choice"),
        ("log_to_wandb", False, "our choice"),
    ]
    if cfg.hook_name.endswith(HOOK_Z):
        lines.append(("reshape_activations", "hook_z", "a fact about the hook"))
    if look.leading:
        why = "seen by the pilot: positions without outliers"
        lines.append(("seqpos_slice", [look.leading, None], why))
    return lines


def recipe_text(lines: list[Line], about: str) -> str:
    """The file: what is ``about`` it as comments, then a line for each flag."""
    head = textwrap.wrap(f"By hsae pilot. {about}", 96)
    body = [
        f"{flag}: {json.dumps(value, ensure_ascii=False)}  # {why}" for flag, value, why in lines
    ]
    return "\n".join([*(f"# {said}" for said in head), "", *body, ""])


def write_recipe(text: str, file: Path) -> None:
    """Writes the file.

    Raises:
        FileExistsError: if there is one, be it since the pilot began.
    """
    if file.exists():
        raise FileExistsError(f"There is a file at {file} now: move it, and run the pilot again.")
    with replacing_file(file) as fresh:
        fresh.write_text(text, encoding="utf-8")
