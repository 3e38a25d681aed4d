"""``hsae eval``: SAEs judged on the same tokens, in a folder that ``hsae report`` reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from hsae_lens._version import __version__
from hsae_lens.evaluation.adaptive import adaptive_frontier, explained_variance_curve
from hsae_lens.evaluation.downstream import evaluate_tasks
from hsae_lens.evaluation.examples import example_texts
from hsae_lens.evaluation.frontier import evaluate_budgets
from hsae_lens.evaluation.judged import Judged, judged_activations, longest
from hsae_lens.evaluation.metrics import FEWEST_GROUPS
from hsae_lens.evaluation.stability import contribution_stability, noise_stability
from hsae_lens.files import write_csv, write_json
from hsae_lens.models import model_name_of, open_model_of
from hsae_lens.plots import plot_frontier
from hsae_lens.sae import HierarchicalTopKSAE, joined_heads
from hsae_lens.saved import open_sae
from hsae_lens.tasks import TASKS, make_task
from hsae_lens.text import sample_tokens

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
        budgets (str | None): Comma-separated. None is 1, 2, 4, … K of each SAE.
        bootstrap (int): Resamples for the standard errors, 0 for none.
        tasks (int): Pairs of each behavioural task, 0 for none.
        examples (int): Example sequences to follow latent by latent.
        device (str): Where to run, "cpu" or "cuda".
        dtype (str): Of the language model. bfloat16 is faster and rounds cross-entropies.
    """

    saes: list[str]
    out: str = "runs/eval"
    text: str | None = None
    model: str | None = None
    tokens: int = 8192
    budgets: str | None = None
    bootstrap: int = 200
    tasks: int = 24
    examples: int = 3
    device: str = "cpu"
    dtype: str = "float32"


def run_eval(cfg: EvalConfig) -> pd.DataFrame:
    """Evaluates every SAE and, if the first is hierarchical, a random control; writes ``out``.

    Every SAE is judged on the same tokens: the positions and norms that the first one was trained
    on. Text is taken evenly from all of the documents.

    Leaves ``frontier.csv`` (a row per SAE and budget, :func:`evaluate_budgets`' columns),
    ``frontier.png``, ``tasks.csv`` (:func:`evaluate_tasks`), ``run.json`` (how all this was made)
    and, of the first SAE if it is hierarchical, ``curve.csv``, ``adaptive.csv``,
    ``stability.csv``, ``contributions.csv`` and ``examples.json``.

    Raises:
        ValueError: if the SAEs are not of one hook and width.
    """
    started = time.perf_counter()
    opened = Opened.by(cfg)
    saes, model, first = opened.saes, opened.model, opened.first
    tokens, documents, budgets = opened.tokens, opened.documents, opened.budgets
    x, sequences = opened.activations
    out = Path(cfg.out)
    for name in OUTPUTS:  # of an earlier run: a report must not mix them
        (out / name).unlink(missing_ok=True)
    bootstrap = cfg.bootstrap
    if bootstrap and len(documents.unique()) < FEWEST_GROUPS:
        logger.warning("Too few documents for standard errors; left out.")
        bootstrap = 0

    tables = []
    for label, sae in saes.items():
        print(f"Evaluating {label} on {tokens.numel():,} tokens.")
        table = evaluate_budgets(
            sae,
            model,
            tokens,
            budgets,
            seqpos_slice=first.cfg.metadata.seqpos_slice or (None,),
            max_norm=longest(first),
            bootstrap=bootstrap,
            documents=documents,
        )
        tables.append(table.assign(sae=label))
    frontier = keep_table(tables, out / "frontier.csv")
    plot_frontier(frontier, out / "frontier.png", f"{opened.hook_name} of {opened.model_name}")
    if solved := _tasks(opened, cfg.tasks):
        keep_table(solved, out / "tasks.csv")
    if isinstance(first, HierarchicalTopKSAE):
        write_csv(explained_variance_curve(first, x), out / "curve.csv")
        write_csv(adaptive_frontier(first, x, error_targets=(0.3, 0.2, 0.1)), out / "adaptive.csv")
        write_csv(noise_stability(first, x), out / "stability.csv")
        try:
            contributions = contribution_stability(first, x, documents[sequences])
            write_csv(contributions, out / "contributions.csv")
        except ValueError as error:  # too little text for two halves: the rest stands
            logger.warning("Left out: %s", error)
        write_json(example_texts(first, model, tokens[: cfg.examples, :64]), out / "examples.json")
    seconds = time.perf_counter() - started
    facts = {
        "model": opened.model_name,
        "hook": opened.hook_name,
        "d_in": first.cfg.d_in,
        "d_sae": first.cfg.d_sae,
        "k": getattr(first.cfg, "k", None),
        "text": cfg.text or "CPython's language reference",
        "tokens": tokens.numel(),
        "hsae_lens": __version__,
        "torch": torch.__version__,
        "seconds": round(seconds),
        "settings": asdict(cfg),
    }
    write_json(facts, out / "run.json")
    print(f"Wrote {out} in {seconds:.0f} s.")
    return frontier


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
        """Opens the SAEs, the model and the text; see :class:`EvalConfig`."""
        saes = {name: open_sae(name, cfg.device, "float32") for name in cfg.saes}
        first = next(iter(saes.values()))
        _check_same_hook(saes)
        model = open_model_of(first, cfg.model, cfg.device, getattr(torch, cfg.dtype))
        context = first.cfg.metadata.context_size
        tokens, documents = sample_tokens(cfg.text, model.tokenizer, context, cfg.tokens)
        activations = judged_activations(first, model, tokens)
        if isinstance(first, HierarchicalTopKSAE):
            saes[CONTROL] = random_control(first, activations[0][:2048])
        return cls(
            saes,
            model,
            str(cfg.model or model_name_of(first)),
            tokens,
            documents,
            activations,
            [int(k) for k in cfg.budgets.split(",")] if cfg.budgets else None,
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


def _tasks(opened: Opened, n: int) -> list[pd.DataFrame]:
    """Every task that can be posed here with ``n`` pairs, for each SAE; the others are said."""
    judged, tables = Judged.by(opened.first, opened.model), []
    for name in TASKS if n else ():
        try:
            task = make_task(name, opened.model.tokenizer, n)
            for label, sae in opened.saes.items():
                table = evaluate_tasks(sae, opened.model, [task], opened.budgets, judged=judged)
                tables.append(table.assign(sae=label))
        except ValueError as error:
            logger.warning("Left out: %s", error)
    return tables


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


def _check_same_hook(saes: dict[str, SAE[Any]]) -> None:
    hooks = {(sae.cfg.metadata.hook_name, sae.cfg.d_in) for sae in saes.values()}
    if len(hooks) > 1:
        listed = "; ".join(
            f"{name}: {sae.cfg.metadata.hook_name}, width {sae.cfg.d_in}"
            for name, sae in saes.items()
        )
        raise ValueError(f"The SAEs are not of one hook, so they cannot be compared: {listed}.")
