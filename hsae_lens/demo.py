"""The main job end to end: real model, real text, one SAE for every budget, and a control."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import sae_lens
import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.files import replacing
from hsae_lens.models import SMOLLM2, open_model
from hsae_lens.plots import plot_frontier
from hsae_lens.runner import HierarchicalTopKTrainingRunner, cache_activations
from hsae_lens.sae import HierarchicalTopKSAE
from hsae_lens.text import cpython_reference, documents_of, hold_out, token_dataset, tokenize
from hsae_lens.training import HierarchicalTopKTrainingSAEConfig

HIERARCHICAL = "hierarchical"
CONTROL = "control (loss at K only)"
COLUMNS = ["sae", "k", "l0", "explained_variance", "mse", "ce_score"]


@dataclass
class DemoConfig:
    """What ``hsae demo`` does; every field is a flag.

    Args:
        steps (int): Training steps for each of the two SAEs, of 1024 tokens.
        layer (int): The residual stream after this block is rewritten.
        d_sae (int): Number of latents.
        k (int): The largest budget, K.
        text (str | None): A local text, JSONL or parquet file, or a folder of them. None reads
            CPython's own language reference.
        out (str): Folder for the SAE, the table and the picture.
        model (str): What to open: a hub name, a local folder, or smollm2-135m.
        device (str): Where to run, "cpu" or "cuda".
        eval_tokens (int): About how many held-out tokens to evaluate on.
        seed (int): Of the split, the initial weights and the order of the data.
    """

    steps: int = 800
    layer: int = 15
    d_sae: int = 4608
    k: int = 64
    text: str | None = None
    out: str = "runs/demo"
    model: str = SMOLLM2
    device: str = "cpu"
    eval_tokens: int = 4096
    seed: int = 0

    context_size = 128
    batch_size = 1024
    held_out = 0.1
    # The model parks an outlier of over 50 times the usual norm on a sequence's first token and
    # now and then on its second; squared errors would see little else.
    seqpos_slice = (2, None)


def run_demo(cfg: DemoConfig) -> pd.DataFrame:
    """Trains a hierarchical SAE and its control, evaluates both, and leaves the results in ``out``.

    Writes ``sae/`` and ``control/`` (SAELens format), ``frontier.csv`` and ``frontier.png``.

    Returns:
        The table in ``frontier.csv``: one row per SAE and budget.
    """
    started = time.perf_counter()
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    train_documents, held_documents = hold_out(
        documents_of(cfg.text) if cfg.text else cpython_reference(), cfg.held_out, cfg.seed
    )
    # On a CPU, bfloat16 runs the language model about three times faster than float32.
    model = open_model(cfg.model, cfg.device, torch.bfloat16)
    train_tokens = tokenize(train_documents, model.tokenizer, cfg.context_size)
    held_tokens = tokenize(held_documents, model.tokenizer, cfg.context_size)
    held_tokens = held_tokens[: max(1, cfg.eval_tokens // cfg.context_size)]
    hook_name = f"blocks.{cfg.layer}.hook_resid_post"
    print(
        f"{cfg.model}, {hook_name}: {train_tokens.numel():,} tokens to train on, "
        f"{held_tokens.numel():,} held out."
    )

    activations = cache_activations(
        model,
        train_tokens,
        hook_name,
        out / "activations",
        seqpos_slice=cfg.seqpos_slice,
        seed=cfg.seed,
    )
    tables = []
    try:
        for name, folder, budgets in (
            (HIERARCHICAL, out / "sae", None),
            (CONTROL, out / "control", [cfg.k]),
        ):
            print(f"\nTraining the {name} SAE: {cfg.steps} steps of {cfg.batch_size} tokens.")
            _train(cfg, model, train_tokens, activations, folder, budgets)
            sae = HierarchicalTopKSAE.load_from_disk(folder, device=cfg.device)
            table = evaluate_budgets(sae, model, held_tokens)
            tables.append(table.assign(sae=name))
    finally:
        shutil.rmtree(activations, ignore_errors=True)

    table = pd.concat(tables, ignore_index=True)[COLUMNS]
    with replacing(out / "frontier.csv") as fresh:
        table.to_csv(fresh, index=False)
    plot_frontier(
        table,
        out / "frontier.png",
        f"One SAE, every budget: {cfg.model}, layer {cfg.layer}, {cfg.d_sae} latents",
    )
    _report(table, out, time.perf_counter() - started)
    return table


def _train(
    cfg: DemoConfig,
    model: Any,
    tokens: torch.Tensor,
    activations: Path,
    folder: Path,
    budgets: list[int] | None,
) -> None:
    runner_config: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
        sae=HierarchicalTopKTrainingSAEConfig(
            d_in=model.cfg.d_model,
            d_sae=cfg.d_sae,
            k=cfg.k,
            budgets=budgets,
            b_dec_init="mean",
            device=cfg.device,
        ),
        model_name=cfg.model,
        model_from_pretrained_kwargs={},
        hook_name=f"blocks.{cfg.layer}.hook_resid_post",
        dataset_path=cfg.text or "pydoc_data.topics",
        context_size=cfg.context_size,
        seqpos_slice=cfg.seqpos_slice,
        exclude_special_tokens=True,
        use_cached_activations=True,
        cached_activations_path=str(activations),
        n_batches_in_buffer=64,
        training_tokens=cfg.steps * cfg.batch_size,
        train_batch_size_tokens=cfg.batch_size,
        lr=2e-3,
        lr_warm_up_steps=cfg.steps // 20,
        lr_decay_steps=cfg.steps // 5,
        device=cfg.device,
        seed=cfg.seed,
        checkpoint_path=None,
        output_path=str(folder),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    torch.manual_seed(cfg.seed)
    with _quiet_epochs():
        HierarchicalTopKTrainingRunner(
            runner_config, override_dataset=token_dataset(tokens), override_model=model
        ).run()


@contextlib.contextmanager
def _quiet_epochs() -> Iterator[None]:
    """The demo means to read its text several times and to bring its own model and data."""
    level = sae_lens.logger.level
    sae_lens.logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*training dataset.*")
        yield
    sae_lens.logger.setLevel(level)


def _report(table: pd.DataFrame, out: Path, seconds: float) -> None:
    shown = table.to_string(index=False, float_format=lambda value: f"{value:.3f}")
    print(f"\n{shown}\n")
    print(f"SAE      {out / 'sae'}   (SAE.load_from_disk after import hsae_lens)")
    print(f"Control  {out / 'control'}")
    print(f"Table    {out / 'frontier.csv'}")
    print(f"Picture  {out / 'frontier.png'}")
    print(f"Took {seconds:.0f} s.")
