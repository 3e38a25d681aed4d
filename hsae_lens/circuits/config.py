"""The settings of ``hsae circuits``: a field is a flag, its docstring the flag's help."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.tables import RULE_NAMES
from hsae_lens.circuits.curve import ErrorNodes, check_circuit_sizes
from hsae_lens.circuits.replacement import Replacement
from hsae_lens.evaluation.tasks.builtin import task_name
from hsae_lens.evaluation.tasks.pairs import Pair, read_pairs
from hsae_lens.models.devices import model_device, model_dtype
from hsae_lens.objective.budgets import Budget, ErrorTarget, MeanBudget

FEWEST = 8  # pairs: with fewer a perfect score could be luck, and half of them find nothing


@dataclass
class CircuitsConfig:
    """What ``hsae circuits`` does; every field is a flag."""

    sae: list[str]
    """A folder with a saved SAE, or RELEASE/SAE_ID; again for a further site. Each is of another
    hook."""
    beside: list[str] = field(default_factory=list)
    """An SAE of the first one's hook to compare with, a specialist for instance; again for more."""
    task: str = "agreement"
    """A task's name, or a CSV, JSONL or parquet file of pairs."""
    budgets: list[int] = field(default_factory=lambda: [8, 32, 128])
    """The budgets to find circuits at, ascending."""
    mean_budgets: list[float] = field(default_factory=list)
    """Budgets to be spent on average too, ascending: tokens share them by one threshold. Of
    hierarchical SAEs that are calibrated."""
    error_targets: list[float] = field(default_factory=list)
    """Shares of unexplained variance to which each token takes latents too, ascending."""
    pairs: int = 64
    """Pairs of the task, or at most of the file; half find the circuits, the others judge them, and
    no prompt is in both halves."""
    sizes: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128, 256])
    """Numbers of nodes to judge circuits of, ascending, two above 0 at least."""
    replace: Replacement = "resample"
    """What takes the place of a node: resample, mean or zero."""
    errors: ErrorNodes = "remove"
    """Error nodes in a circuit: remove, keep, or default (ranked like latents)."""
    steps: int = 8
    """Of integrated gradients; 1 is one gradient at the clean prompts."""
    controls: bool = True
    """Whether to judge a random decoder and the model's own neurons too."""
    out: str = "runs/circuits"
    """Folder for the tables, the pictures and the page."""
    model: str | None = None
    """What to open: a hub name, a local folder, or smollm2-135m. None is what the first SAE says it
    was trained on."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = "auto"
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""


def budgets_by_rule(cfg: CircuitsConfig) -> dict[str, list[Budget]]:
    """The budgets asked for, by what stands after a dictionary's label; the fixed ones first.

    Raises:
        ValueError: for one that no SAE has.
    """
    by_rule: dict[str, list[Budget]] = {"": list(cfg.budgets)}
    if cfg.mean_budgets:
        by_rule[RULE_NAMES["mean"]] = [MeanBudget(k) for k in cfg.mean_budgets]
    if cfg.error_targets:
        by_rule[RULE_NAMES["error"]] = [ErrorTarget(share) for share in cfg.error_targets]
    return by_rule


def check_circuit_settings(cfg: CircuitsConfig) -> None:
    """Raises ValueError for what can be seen to be wrong before anything is opened."""
    if not cfg.sae:
        raise ValueError("Circuits need an SAE: sae is empty.")
    if min(cfg.budgets, default=0) < 1:
        raise ValueError(f"Budgets are whole numbers of at least 1, got {cfg.budgets}.")
    budgets_by_rule(cfg)
    check_circuit_sizes(cfg.sizes)
    if len([size for size in cfg.sizes if size > 0]) < 2:
        raise ValueError(f"A curve needs two sizes above 0, got {cfg.sizes}.")
    for name, known in (("replace", Replacement), ("errors", ErrorNodes)):
        value = getattr(cfg, name)
        if value not in get_args(known):
            raise ValueError(f"Unknown {name} {value!r}.{did_you_mean(value, get_args(known))}")
    if cfg.steps < 1:
        raise ValueError(f"Integrated gradients need 1 step at least, got {cfg.steps}.")
    model_device(cfg.device)
    model_dtype(cfg.dtype, cfg.device)
    pairs_of_task(cfg.task, cfg.pairs)
    _check_writable(Path(cfg.out))


def _check_writable(out: Path) -> None:
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".writing-"):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to {out}: {error.strerror} ({there}).") from error


def pairs_of_task(name: str, n: int) -> list[Pair] | None:
    """The pairs of a file, None for a task that has a name.

    Raises:
        ValueError: for an unknown task, a file that :func:`read_pairs` refuses, or too few pairs.
    """
    if n < FEWEST:
        raise ValueError(f"{n} pairs show nothing that guessing could not: {FEWEST} at least.")
    if not Path(name).suffix:
        task_name(name)
        return None
    pairs = read_pairs(name)
    if len(pairs) < FEWEST:
        raise ValueError(
            f"{name} has {len(pairs)} pair{'s' if len(pairs) > 1 else ''}, {FEWEST} are needed: "
            "half of them find the circuits, the others judge them."
        )
    return pairs
