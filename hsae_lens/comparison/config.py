"""The settings of ``hsae compare``: a field is a flag, its docstring the flag's help."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hsae_lens.comparison.families import Shape, family
from hsae_lens.comparison.synthetic import SyntheticSettings
from hsae_lens.evaluation.frontier.metrics import FEWEST_GROUPS
from hsae_lens.models.devices import AUTO, model_device, model_dtype
from hsae_lens.models.smollm2 import SMOLLM2
from hsae_lens.models.text_files import open_text
from hsae_lens.objective.budgets import resolve_budgets

USUAL = ("hierarchical", "topk", "batchtopk", "frozen-decoder")

QUICK: dict[str, Any] = {
    "budgets": [4, 16, 64],
    "seeds": 1,
    "steps": 800,
    "d_sae": 1152,
    "learning_rates": [2e-3],
    "train_tokens": 100_000,
    "eval_tokens": 8192,
    "ce_tokens": 1024,
}


@dataclass
class CompareConfig:
    """What ``hsae compare`` does; every field is a flag."""

    out: str = "runs/compare"
    """Folder of the comparison. What is there already is not trained again: the same command goes
    on with one that was interrupted, further families, budgets and seeds are added to it."""
    quick: bool = False
    """A small comparison (one seed, three budgets, few latents, one learning rate for all), in less
    than half an hour on two cores. Flags whose values are not the usual ones still count."""
    families: list[str] = field(default_factory=lambda: [*USUAL])
    """What to compare: hierarchical, hierarchical-inverse, hierarchical-headroom,
    hierarchical-square, topk, topk-saelens, batchtopk, matryoshka, multi-topk, frozen-decoder,
    soft-frozen-decoder, frozen-encoder."""
    budgets: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    """The budgets to compare at, ascending; the last is K. Specialists are trained for each."""
    seeds: int = 3
    """How often each is trained, with other initial weights and another order of the data."""
    steps: int = 1500
    """Training steps of each SAE."""
    batch_size: int = 512
    """Tokens in a step."""
    d_sae: int = 2304
    """Number of latents of each SAE."""
    learning_rates: list[float] = field(default_factory=lambda: [1e-3, 2e-3, 4e-3, 8e-3])
    """Tried for each family, of specialists for each budget, with the first seed; the best on
    validation tokens, at the budgets it is for, is then used."""
    model: str = SMOLLM2
    """What to open: a hub name, a local folder, smollm2-135m, or synthetic: SAELens' benchmark with
    known features."""
    hook_name: str = "blocks.15.hook_resid_post"
    """The TransformerLens hook of which activations are compared."""
    text: str | None = None
    """To train on, and held out a fifth of: a local text, JSONL, CSV or parquet file, or a folder
    of them. None is the source code of Python's standard library."""
    other_text: str | None = None
    """Another kind of text to judge on too. None is CPython's language reference."""
    train_tokens: int = 500_000
    """About how many tokens to train on, several times if there are more steps."""
    eval_tokens: int = 16384
    """About how many held-out tokens of each kind of text to judge on."""
    ce_tokens: int = 2048
    """About how many of these the model predicts with each SAE spliced in; 0 for none."""
    context_size: int = 128
    """Tokens in a sequence."""
    n_features: int = 512
    """Of the synthetic model: how many directions its activations are made of."""
    true_l0: float = 16.0
    """Of the synthetic model: how many of them there are in an activation, on average."""
    correlation: float = 0.1
    """Of the synthetic model: how much features fire together; 0 for independent ones."""
    depth: int = 2
    """Of the synthetic model: generations of features that fire only with their parents; 0 for
    features that stand alone."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = AUTO
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""

    @property
    def is_synthetic(self) -> bool:
        return self.model == SYNTHETIC


SYNTHETIC = "synthetic"

GROWS = ("out", "quick", "families", "budgets", "seeds", "device")
"""What may differ from the command that began a comparison: more of the same, or where it runs."""


def with_presets(cfg: CompareConfig) -> CompareConfig:
    """The settings with ``quick``'s sizes where they were left at their defaults."""
    if not cfg.quick:
        return cfg
    usual = CompareConfig()
    left = {name for name in QUICK if getattr(cfg, name) == getattr(usual, name)}
    return replace(cfg, **{name: value for name, value in QUICK.items() if name in left})


def check_compare_settings(cfg: CompareConfig) -> None:
    """Raises ValueError or FileNotFoundError for settings that cannot be right, before any work."""
    least = {"seeds": 1, "steps": 1, "batch_size": 1, "d_sae": 1, "train_tokens": 1,
             "eval_tokens": FEWEST_GROUPS, "ce_tokens": 0, "context_size": 2}  # fmt: skip
    for name, lowest in least.items():
        if (value := getattr(cfg, name)) < lowest:
            raise ValueError(f"{name} must be {lowest} or more, got {value}.")
    if not cfg.families:
        raise ValueError("families is empty; name some, or leave it out.")
    if not cfg.budgets:
        raise ValueError("budgets is empty; name some, or leave it out.")
    resolve_budgets(cfg.budgets, max(cfg.budgets))
    if cfg.budgets[-1] > cfg.d_sae:
        raise ValueError(f"The budget {cfg.budgets[-1]} is more than the {cfg.d_sae} latents.")
    for name in cfg.families:
        family(name).config(shape_of(cfg, d_in=1), cfg.budgets[-1])
    _check_learning_rates(cfg.learning_rates)
    model_dtype(cfg.dtype, model_device(cfg.device))
    synthetic_settings(cfg)
    for path in (cfg.text, cfg.other_text):
        if path is not None:
            open_text(path)
    if Path(cfg.out).exists() and not Path(cfg.out).is_dir():
        raise ValueError(f"{cfg.out} is a file; give a folder for the comparison (out).")


def _check_learning_rates(rates: list[float]) -> None:
    if not rates or not all(0 < lr < 1 for lr in rates):
        raise ValueError(f"learning_rates must be between 0 and 1, got {rates}.")
    if len({f"{lr:g}" for lr in rates}) < len(rates):
        raise ValueError(f"learning_rates must differ in their first six digits, got {rates}.")


def settings_that_must_agree(cfg: CompareConfig) -> dict[str, object]:
    """What SAEs of one comparison have in common."""
    shared = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in GROWS}
    return {**shared, "k": cfg.budgets[-1]}


def shape_of(cfg: CompareConfig, d_in: int) -> Shape:
    return Shape(d_in, cfg.d_sae, tuple(cfg.budgets), cfg.device)


def synthetic_settings(cfg: CompareConfig) -> SyntheticSettings:
    """Those of ``--model synthetic``; ValueError for what cannot be."""
    return SyntheticSettings(
        n_features=cfg.n_features,
        true_l0=cfg.true_l0,
        correlation=cfg.correlation,
        depth=cfg.depth,
    )
