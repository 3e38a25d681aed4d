"""The settings of ``hsae pilot``: a field is a flag, its docstring the flag's help."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from hsae_lens._util.paths import expand_home
from hsae_lens.comparison.config import CompareConfig
from hsae_lens.evaluation.frontier.metrics import FEWEST_GROUPS
from hsae_lens.models.devices import AUTO, model_device, model_dtype
from hsae_lens.models.smollm2 import SMOLLM2
from hsae_lens.models.text_files import open_text
from hsae_lens.objective.budgets import powers_of_two, resolve_budgets
from hsae_lens.training.checks import PAIRS_OF_POSITIONS

RECIPE = "recipe.yaml"

LATENTS_PER_DIMENSION = 8  # where no width is asked for


@dataclass
class PilotConfig:
    """What ``hsae pilot`` does; every field is a flag."""

    out: str = "runs/pilot"
    """Folder of the pilot. An interrupted one goes on with the same command."""
    recipe: str | None = None
    """Where to write the recipe for hsae train --recipe. None is recipe.yaml in the folder. A file
    that is there is not overwritten."""
    minutes: float = 20.0
    """How long it may take in all, opening the model and collecting activations included."""
    model: str = SMOLLM2
    """What to open: a hub name, a local folder, or smollm2-135m."""
    hook_name: str = "blocks.15.hook_resid_post"
    """The TransformerLens hook whose activations are to be rewritten."""
    text: str | None = None
    """To train on, and held out a fifth of: a local text, JSONL, CSV or parquet file, or a folder
    of them. None is the source code of Python's standard library."""
    d_sae: int | None = None
    """Number of latents. None is 8 for each dimension of the hook."""
    k: int = 64
    """The largest budget, K."""
    budgets: list[int] | None = None
    """The budgets that matter to you, ascending: settings are chosen by the mean of the explained
    variance at them. None is 1, 2, 4, … K."""
    batch_size: int = 1024
    """Tokens in a training step."""
    training_tokens: int = 5_000_000
    """Of the full run that the recipe is for."""
    train_tokens: int = 300_000
    """About how many tokens to train on in the pilot at most; fewer where the model is slow."""
    eval_tokens: int = 8192
    """About how many held-out tokens to judge the recommended settings on, of each of two kinds of
    text; the other kind is CPython's language reference."""
    ce_tokens: int = 1024
    """About how many of these the model predicts with the SAE spliced in; 0 for none."""
    metrics: list[str] = field(default_factory=list)
    """A measure of your own, as FILE.py:NAME: a function that makes a number per token from
    activations and their rewriting, both [tokens, d_in]. It stands on the first screen. The file's
    code is run."""
    context_size: int = 128
    """Tokens in a sequence."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = AUTO
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""

    @property
    def judged_budgets(self) -> list[int]:
        return self.budgets or powers_of_two(self.k)

    @property
    def full_steps(self) -> int:
        """Training steps of the full run."""
        return max(1, self.training_tokens // self.batch_size)

    @property
    def recipe_file(self) -> Path:
        return expand_home(self.recipe or Path(self.out) / RECIPE).absolute()

    def as_comparison(self, train_tokens: int, d_sae: int) -> CompareConfig:
        """What decides the activations: they are collected as for a comparison of families."""
        shared = {f.name: getattr(self, f.name) for f in fields(CompareConfig) if f.name in SHARED}
        return CompareConfig(
            **shared, budgets=self.judged_budgets, steps=1, train_tokens=train_tokens, d_sae=d_sae
        )


SHARED = ("model", "hook_name", "text", "batch_size", "eval_tokens", "ce_tokens", "context_size",
          "device", "dtype")  # fmt: skip

MAY_CHANGE = ("out", "recipe", "minutes", "training_tokens", "metrics")
"""What may differ from the command that began a pilot."""


def check_pilot_settings(cfg: PilotConfig) -> None:
    """Raises ValueError or FileNotFoundError for settings that cannot be right, before any work."""
    least = {"k": 1, "batch_size": 1, "training_tokens": 1, "train_tokens": 1,
             "eval_tokens": FEWEST_GROUPS, "ce_tokens": 0, "context_size": 2}  # fmt: skip
    for name, lowest in least.items():
        if (value := getattr(cfg, name)) < lowest:
            raise ValueError(f"{name} must be {lowest} or more, got {value}.")
    if not cfg.minutes > 0:  # NaN too
        raise ValueError(f"minutes must be above 0, got {cfg.minutes}.")
    if cfg.d_sae is not None and cfg.d_sae < cfg.k:
        raise ValueError(f"k is {cfg.k}, more than the {cfg.d_sae} latents of d_sae.")
    resolve_budgets(cfg.judged_budgets, max(cfg.judged_budgets))
    if cfg.judged_budgets[-1] > cfg.k:
        raise ValueError(f"The budget {cfg.judged_budgets[-1]} is more than k, which is {cfg.k}.")
    if cfg.hook_name.endswith(PAIRS_OF_POSITIONS):
        raise ValueError(
            f"hook_name {cfg.hook_name} has a number for each pair of tokens; give a hook with a "
            "vector for each token."
        )
    _check_places(cfg)
    model_dtype(cfg.dtype, model_device(cfg.device))
    if cfg.text is not None:
        open_text(cfg.text)


def _check_places(cfg: PilotConfig) -> None:
    if expand_home(cfg.out).is_file():
        raise ValueError(f"{cfg.out} is a file; give a folder for the pilot (out).")
    if cfg.recipe_file.exists():
        raise ValueError(
            f"There is a recipe at {cfg.recipe_file}, which is not overwritten: move it, or give "
            "another place (recipe), or another folder (out)."
        )
