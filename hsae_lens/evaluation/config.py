"""The settings of ``hsae eval``: a field is a flag, its docstring the flag's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hsae_lens.evaluation.frontier.metrics import check_bootstrap
from hsae_lens.models.devices import AUTO, model_device, model_dtype
from hsae_lens.models.text_files import open_text


@dataclass
class EvalConfig:
    """What ``hsae eval`` does; every field but ``saes`` is a flag."""

    saes: list[str]
    """Folders with a saved SAE, or RELEASE/SAE_ID; all of one model and hook. The first is the one
    a report is about."""
    out: str = "runs/eval"
    """Folder for the tables, the picture and the examples."""
    text: str | None = None
    """A local text, JSONL, CSV or parquet file, or a folder of them. None is CPython's own language
    reference."""
    model: str | None = None
    """What to open: a hub name, a local folder, or smollm2-135m. None is what the first SAE says it
    was trained on."""
    tokens: int = 8192
    """About how many tokens to judge."""
    budgets: list[int] | None = None
    """The budgets to judge at, ascending. None is 1, 2, 4, … K of each SAE."""
    mean_budgets: list[float] = field(default_factory=list)
    """Budgets to be spent on average too, ascending: tokens share them by one threshold. Of
    hierarchical SAEs that are calibrated."""
    error_targets: list[float] = field(default_factory=list)
    """Shares of unexplained variance to which each token takes latents too, ascending."""
    metrics: list[str] = field(default_factory=list)
    """A measure of your own as FILE.py:NAME: a function that maps activations and reconstructions,
    both [n, d_in], to a number per token; their mean is a column NAME, and on the page under the
    first line of its docstring. The file's code is run. Given again for more."""
    bootstrap: int = 200
    """Resamples of documents for the standard errors, 0 for none."""
    tasks: int = 24
    """Pairs of each behavioural task, 0 for none."""
    examples: int = 3
    """Example sequences to follow latent by latent."""
    batch_size: int = 0
    """Sequences at once. 0 is 16, or fewer where their logits would take more than half a
    gigabyte."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = AUTO
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32; it rounds cross-entropies. ``run.json`` keeps what was taken."""


def check_eval_settings(cfg: EvalConfig) -> None:
    """Raises ValueError or FileNotFoundError for settings that cannot be right."""
    least = {"tokens": 1, "tasks": 0, "examples": 0, "batch_size": 0}
    for name, lowest in least.items():
        if (value := getattr(cfg, name)) < lowest:
            raise ValueError(f"{name} must be {lowest} or more, got {value}.")
    check_bootstrap(cfg.bootstrap)
    model_dtype(cfg.dtype, model_device(cfg.device))
    if cfg.text == "":
        raise ValueError("text is empty; give a file or folder, or leave it out.")
    if cfg.text is not None:
        open_text(cfg.text)
    if Path(cfg.out).exists() and not Path(cfg.out).is_dir():
        raise ValueError(f"{cfg.out} is a file; give a folder for the tables (out).")
