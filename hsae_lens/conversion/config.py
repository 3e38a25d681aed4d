"""The settings of ``hsae convert``: a field is a flag, its docstring the flag's help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hsae_lens._util.paths import expand_home
from hsae_lens.models.devices import AUTO, model_device, model_dtype
from hsae_lens.models.text_files import open_text
from hsae_lens.objective.budgets import resolve_weights
from hsae_lens.training.learning_rate import suggested_lr

SETTINGS_FILE = "convert.json"  # by which a folder of a conversion is known

REORDERING_LR = 1e-2  # gains are near 1 whatever the SAE, so one rate does


@dataclass
class ConvertConfig:
    """What ``hsae convert`` takes beside the source; every field is a flag."""

    out: str = "runs/converted"
    """Folder for the converted SAE, its card, the frontiers, and how far latents moved."""
    k: int | None = None
    """The largest budget. None is the source's own k; where it says none, give it."""
    only_reorder: bool = False
    """Train a gain and a bias for each latent, nothing else: dictionary and encoder directions
    stay, so labels and dashboards stay valid."""
    steps: int = 300
    """Training steps at most: it stops when the frontier no longer moves."""
    lr: float | None = None
    """Learning rate. None is one for the width and the batch."""
    batch_size: int = 1024
    """Tokens in a step."""
    budget_weights: str = "uniform"
    """How much each budget counts: uniform, inverse or inverse_sqrt for the small ones, linear or
    square for the large, which keep more of what the source has at its own k."""
    model: str | None = None
    """What to open: a hub name, a local folder, or smollm2-135m. None is what the source says it
    was trained on."""
    hook_name: str | None = None
    """The TransformerLens hook that the source reads. None is what it says."""
    text: str | None = None
    """To train on, and hold out a tenth of: a local text, JSONL, CSV or parquet file, or a folder
    of them; best of the kind that the source was trained on. None is CPython's own language
    reference."""
    train_tokens: int = 200_000
    """About how many tokens to train on, several times if there are more steps."""
    cached_activations: str | None = None
    """A folder of activations to train on instead of the text's, as cache_activations or SAELens'
    CacheActivationsRunner writes it. The text is then only judged on."""
    eval_tokens: int = 4096
    """About how many held-out tokens to judge on."""
    context_size: int | None = None
    """Tokens in a sequence. None is the source's, else 128."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = AUTO
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""
    seed: int = 0
    """Of the split and the order of the data."""

    def learning_rate(self, d_sae: int) -> float:
        if self.lr is not None:
            return self.lr
        return REORDERING_LR if self.only_reorder else suggested_lr(d_sae, self.batch_size)


def check_convert_settings(cfg: ConvertConfig) -> None:
    """Raises ValueError or FileNotFoundError for settings that cannot be right, before any work."""
    least = {"steps": 0, "batch_size": 1, "train_tokens": 1, "eval_tokens": 1}
    for name, lowest in least.items():
        if (value := getattr(cfg, name)) < lowest:
            raise ValueError(f"{name} must be {lowest} or more, got {value}.")
    if cfg.context_size is not None and cfg.context_size < 2:
        raise ValueError(f"context_size must be 2 or more, got {cfg.context_size}.")
    if cfg.lr is not None and not 0 < cfg.lr < 1:
        raise ValueError(f"lr must be between 0 and 1, got {cfg.lr}.")
    resolve_weights(cfg.budget_weights, [1])
    model_dtype(cfg.dtype, model_device(cfg.device))
    if cfg.text is not None:
        open_text(cfg.text)
    if cfg.cached_activations is not None and not expand_home(cfg.cached_activations).is_dir():
        raise FileNotFoundError(f"No folder of activations at {cfg.cached_activations}.")


def check_out(out: str | Path, source: str | Path) -> None:
    """Raises ValueError for a place where a conversion would replace something else."""
    folder = expand_home(out)
    if folder.is_dir() and folder.resolve() == expand_home(source).resolve():
        raise ValueError(f"{out} is the source itself, which stays: give another folder (out).")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS_FILE).exists():
        raise ValueError(
            f"{out} holds files that are not of a conversion: give another folder (out), or move "
            "them."
        )
