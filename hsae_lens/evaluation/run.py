"""``hsae eval``: SAEs judged on the same tokens, in a folder that ``hsae report`` reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens._version import __version__
from hsae_lens.devices import AUTO, model_device, model_dtype, name_of
from hsae_lens.evaluation.adaptive import (
    adaptive_frontier,
    explained_variance_curve,
    token_errors,
)
from hsae_lens.evaluation.definitions import stamp
from hsae_lens.evaluation.downstream import evaluate_tasks
from hsae_lens.evaluation.examples import example_texts
from hsae_lens.evaluation.frontier import evaluate_saes
from hsae_lens.evaluation.judged import (
    Judged,
    budgets_of,
    check_same_hook,
    judged_activations,
)
from hsae_lens.evaluation.metrics import FEWEST_GROUPS, check_bootstrap
from hsae_lens.evaluation.stability import contribution_stability, noise_stability
from hsae_lens.files import replacing_files, write_csv, write_json
from hsae_lens.models import model_name_of, open_model_of
from hsae_lens.plots import plot_frontier
from hsae_lens.sae import HierarchicalTopKSAE, joined_heads
from hsae_lens.saved import open_sae
from hsae_lens.tasks import TASKS, make_task
from hsae_lens.text import open_text, sample_tokens

CONTROL = "random decoder"
OUTPUTS = ("run.json", "frontier.csv", "frontier.png", "tasks.csv", "curve.csv", "adaptive.csv",
           "stability.csv", "contributions.csv", "examples.json", "probing.csv",
           "interpretation.csv", "absorption.csv")  # fmt: skip
logger = logging.getLogger(__name__)


@dataclass
class EvalConfig:
    """What ``hsae eval`` does; every field but ``saes`` is a flag.

    Args:
        saes (list[str]): Folders or RELEASE/SAE_ID; all of one model and hook. The first is the
            one a report is about.
        out (str): Folder for the tables, the picture and the examples.
        text (str | None): A local text, JSONL or parquet file, or a folder of them. None reads
            CPython's own language reference.
        model (str | None): What to open. None is what the first SAE says it was trained on.
        tokens (int): About how many tokens to judge.
        budgets (list[int] | None): Ascending. None is 1, 2, 4, … K of each SAE.
        bootstrap (int): Resamples of documents for the standard errors, 0 for none.
        tasks (int): Pairs of each behavioural task, 0 for none.
        examples (int): Example sequences to follow latent by latent.
        batch_size (int): Sequences at once. 0 for 16, or fewer where their logits would take more
            than half a gigabyte.
        device (str): Where to run, "cpu" or "cuda".
        dtype (str): Of the language model. "auto" is bfloat16 where that is faster than float32; it
            rounds cross-entropies. ``run.json`` keeps what was taken.
    """

    saes: list[str]
    out: str = "runs/eval"
    text: str | None = None
    model: str | None = None
    tokens: int = 8192
    budgets: list[int] | None = None
    bootstrap: int = 200
    tasks: int = 24
    examples: int = 3
    batch_size: int = 0
    device: str = "cpu"
    dtype: str = AUTO


def run_eval(cfg: EvalConfig) -> pd.DataFrame:
    """Evaluates every SAE and, if the first is hierarchical, a random control; writes ``out``.

    Every SAE is judged on the same tokens: the positions and norms that the first one was trained
    on. Text is taken evenly from all of the documents.

    Leaves ``frontier.csv`` (a row per SAE and budget, :func:`evaluate_budgets`' columns),
    ``frontier.png``, ``tasks.csv`` (:func:`evaluate_tasks`), ``run.json`` (how all this was made)
    and, of the first SAE if it is hierarchical, ``curve.csv``, ``adaptive.csv``,
    ``stability.csv``, ``contributions.csv`` and ``examples.json``. They appear together at the end:
    what is refused or interrupted leaves ``out`` as it was, and what an earlier evaluation left
    beside these is set aside (:func:`replacing_files`).

    Raises:
        ValueError: for settings or SAEs that cannot be judged (together), before any work.
        FileNotFoundError: if there is no such SAE or text.
    """
    started = time.perf_counter()
    opened = Opened.by(cfg)
    with replacing_files(cfg.out, OUTPUTS) as fresh:
        frontier = _frontier(opened, cfg)
        write_csv(frontier, fresh / "frontier.csv")
        title = f"{opened.hook_name} of {opened.model_name}"
        plot_frontier(frontier, fresh / "frontier.png", title)
        if solved := _tasks(opened, cfg):
            keep_table(solved, fresh / "tasks.csv")
        if isinstance(opened.first, HierarchicalTopKSAE):
            _write_order(opened, opened.first, fresh)
            examples = opened.tokens[: cfg.examples, :64]
            write_json(example_texts(opened.first, opened.model, examples), fresh / "examples.json")
        seconds = time.perf_counter() - started
        write_json(_facts(opened, cfg, seconds), fresh / "run.json")
    print(f"Wrote {cfg.out} in {seconds:.0f} s.")
    return frontier


def check_settings(cfg: EvalConfig) -> None:
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


def _frontier(opened: Opened, cfg: EvalConfig) -> pd.DataFrame:
    n_documents, bootstrap = len(opened.documents.unique()), cfg.bootstrap
    if bootstrap and n_documents < FEWEST_GROUPS:
        logger.warning(
            "Left out: standard errors, which are over documents. The text has %d here and they "
            "need %d: give a folder of files, or a row for each document (JSONL, parquet).",
            n_documents,
            FEWEST_GROUPS,
        )
        bootstrap = 0
    print(f"Evaluating {', '.join(opened.saes)} on {opened.tokens.numel():,} tokens.")
    return evaluate_saes(
        opened.saes,
        opened.model,
        opened.tokens,
        opened.budgets,
        bootstrap=bootstrap,
        documents=opened.documents,
        batch_size=cfg.batch_size or None,
    )


def _tasks(opened: Opened, cfg: EvalConfig) -> list[pd.DataFrame]:
    """Every task that can be posed here, for each SAE; the others are said."""
    judged, tables = Judged.by(opened.first, opened.model), []
    for name in TASKS if cfg.tasks else ():
        try:
            task = make_task(name, opened.model.tokenizer, cfg.tasks)
            for label, sae in opened.saes.items():
                table = evaluate_tasks(
                    sae,
                    opened.model,
                    [task],
                    opened.budgets,
                    judged=judged,
                    batch_size=cfg.batch_size or None,
                )
                tables.append(table.assign(sae=label))
        except ValueError as error:
            logger.warning("Left out: %s", error)
    return tables


def _write_order(opened: Opened, sae: HierarchicalTopKSAE, folder: Path) -> None:
    """Tables about the order of a hierarchical SAE's latents."""
    x, sequences = opened.activations
    errors = token_errors(sae, x)
    targets = (0.3, 0.2, 0.1)
    write_csv(explained_variance_curve(sae, x, errors=errors), folder / "curve.csv")
    adaptive = adaptive_frontier(sae, x, error_targets=targets, errors=errors)
    write_csv(adaptive, folder / "adaptive.csv")
    write_csv(noise_stability(sae, x), folder / "stability.csv")
    try:
        worth = contribution_stability(sae, x, opened.documents[sequences], errors)
        write_csv(worth, folder / "contributions.csv")
    except ValueError as error:  # too little text for two halves: the rest stands
        logger.warning("Left out: %s", error)


def _facts(opened: Opened, cfg: EvalConfig, seconds: float) -> dict[str, Any]:
    first = opened.first
    used = next(opened.model.parameters()).dtype  # what is added later opens it in the same
    return {
        "model": opened.model_name,
        "hook": opened.hook_name,
        "d_in": first.cfg.d_in,
        "d_sae": first.cfg.d_sae,
        "k": getattr(first.cfg, "k", None),
        "text": cfg.text or "CPython's language reference",
        "tokens": opened.tokens.numel(),
        "hsae_lens": __version__,
        "torch": torch.__version__,
        "seconds": round(seconds),
        "settings": asdict(replace(cfg, dtype=name_of(used))),
        "definitions": stamp(
            "frontier", "tasks", "curve", "adaptive", "stability", "contributions"
        ),
    }


@dataclass(frozen=True)
class Opened:
    """What an evaluation works on. The last of ``saes`` is a random control, if there is one."""

    saes: dict[str, SAE[Any]]
    model: Any
    model_name: str
    tokens: torch.Tensor
    documents: torch.Tensor
    activations: tuple[torch.Tensor, torch.Tensor]  # of the tokens that count, and their sequences
    budgets: list[int] | None

    @classmethod
    def by(cls, cfg: EvalConfig) -> Opened:
        """Opens the SAEs, the model and the text; see :class:`EvalConfig`.

        Raises:
            ValueError, FileNotFoundError: as :func:`run_eval`, before the model is opened.
        """
        check_settings(cfg)
        saes = {name: open_sae(name, cfg.device, "float32") for name in cfg.saes}
        check_same_hook(saes)
        for name, sae in saes.items():
            budgets_of(sae, cfg.budgets, name)
        first = next(iter(saes.values()))
        model = open_model_of(first, cfg.model, cfg.device, cfg.dtype)
        context = first.cfg.metadata.context_size
        tokens, documents = sample_tokens(cfg.text, model.tokenizer, context, cfg.tokens)
        activations = judged_activations(first, model, tokens, cfg.batch_size or None)
        if isinstance(first, HierarchicalTopKSAE):
            saes[CONTROL] = random_control(first, activations[0][:2048])
        return cls(
            saes,
            model,
            str(cfg.model or model_name_of(first)),
            tokens,
            documents,
            activations,
            cfg.budgets,
        )

    @property
    def first(self) -> SAE[Any]:
        """The SAE a report is about."""
        return next(iter(self.saes.values()))

    @property
    def hook_name(self) -> str:
        return str(self.first.cfg.metadata.hook_name)

    def hierarchical(self) -> dict[str, HierarchicalTopKSAE]:
        """The hierarchical ones among the SAEs, the control included."""
        return {n: s for n, s in self.saes.items() if isinstance(s, HierarchicalTopKSAE)}


def keep_table(tables: Sequence[pd.DataFrame], path: Path) -> pd.DataFrame:
    """Writes one table of all, the SAE's name first."""
    table = by_sae(tables)
    write_csv(table, path)
    return table


def by_sae(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of all, the SAE's name first."""
    table = pd.concat(tables, ignore_index=True)
    return table[["sae", *table.columns.drop("sae")]]


@torch.no_grad()
def random_control(sae: HierarchicalTopKSAE, activations: torch.Tensor) -> HierarchicalTopKSAE:
    """The same SAE with random decoder directions, which its encoder reads off.

    Directions have norm 1; the encoder's gain is fitted to the activations ``[n, d_in]``, one
    number that serves all budgets best. What it scores, a dictionary of this size scores without
    having learnt anything.
    """
    control = HierarchicalTopKSAE.from_dict(sae.cfg.to_dict())
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(sae.cfg.d_sae, sae.cfg.d_in, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    control.W_dec.copy_(directions)
    control.W_enc.copy_(directions.T)
    control.b_enc.zero_()
    control.b_dec.copy_(sae.b_dec)
    if not sae.cfg.apply_b_dec_to_input:
        control.b_enc.copy_(-sae.b_dec @ control.W_enc)
    x = activations.to(sae.device, sae.dtype)
    wanted = got = 0.0
    code = control.encode_joined(x)
    with joined_heads(control):
        reconstructions = control.each_budget(code, range(sae.cfg.k + 1))
        without = next(reconstructions)  # the gain scales what latents add to it, normalised or not
        for x_hat in reconstructions:
            step = x_hat - without
            wanted += float((step * (x - without)).sum())
            got += float(step.square().sum())
    control.W_enc.mul_(wanted / got)
    control.b_enc.mul_(wanted / got)
    return control
