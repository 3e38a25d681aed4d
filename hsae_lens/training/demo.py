"""The main job end to end: real model, real text, one SAE for every budget, and a control."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.constants import RUNNER_CFG_FILENAME

from hsae_lens._util.atomic_files import replacing_files, write_json
from hsae_lens._util.columns import frontier_columns
from hsae_lens._util.tables import write_csv
from hsae_lens.evaluation import evaluate_saes
from hsae_lens.evaluation.plots import plot_frontier
from hsae_lens.models.devices import AUTO, dtype_name, model_dtype
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import open_model
from hsae_lens.models.smollm2 import SMOLLM2
from hsae_lens.models.text_files import cpython_reference, documents_of, hold_out
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.models.tokenizing import token_dataset, tokenize
from hsae_lens.objective.budgets import powers_of_two
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAEConfig
from hsae_lens.training.activation_cache import cache_activations, reading_several_times
from hsae_lens.training.demo_timing import measure_speed, plan_demo
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner

logger = logging.getLogger(__name__)

HIERARCHICAL = "hierarchical"

LOSS_AT_K = "control (loss at K only)"

CONTEXT_SIZE = 128

TOKENS_PER_STEP = 1024

HELD_OUT = 0.1  # of the text

# The model parks an outlier of over 50 times the usual norm on a sequence's first token and now and
# then on its second; squared errors would see little else.
FIRST_POSITION = 2


@dataclass
class DemoConfig:
    """What ``hsae demo`` does; every field is a flag."""

    steps: int = 800
    """Training steps for each of the two SAEs, of 1024 tokens."""
    layer: int = 15
    """The residual stream after this block is rewritten."""
    d_sae: int = 4608
    """Number of latents."""
    k: int = 64
    """The largest budget, K."""
    text: str | None = None
    """A local text, JSONL, CSV or parquet file, or a folder of them. None is CPython's own language
    reference."""
    out: str = "runs/demo"
    """Folder for the SAEs, the table and the picture."""
    model: str = SMOLLM2
    """What to open: a hub name, a local folder, or smollm2-135m."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1 or mps."""
    dtype: str = AUTO
    """Of the language model: float32, bfloat16, float16, or auto, which is bfloat16 where that is
    faster than float32."""
    minutes: float = 7.0
    """How long it may take in all. A machine too slow for all of the text reads less of it, down to
    two fifths."""
    eval_tokens: int = 4096
    """About how many held-out tokens to evaluate on."""
    seed: int = 0
    """Of the split, the initial weights and the order of the data."""

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.hook_resid_post"


def run_demo(cfg: DemoConfig) -> pd.DataFrame:
    """Trains a hierarchical SAE and its control, evaluates both, and leaves the results in ``out``.

    Writes ``sae/`` and ``control/`` (SAELens format), ``frontier.csv`` and ``frontier.png``.

    Returns:
        The table in ``frontier.csv``: one row per SAE and budget.

    Raises:
        ValueError: for settings that cannot be, or too little text.
    """
    _check(cfg)
    started = time.perf_counter()
    with replacing_files(cfg.out) as fresh:
        return _train_and_judge(cfg, fresh, started)


def _check(cfg: DemoConfig) -> None:
    for name in ("steps", "d_sae", "k", "eval_tokens", "minutes"):
        if not getattr(cfg, name) > 0:  # NaN too
            raise ValueError(f"{name} must be above 0, got {getattr(cfg, name)}.")
    if cfg.k > cfg.d_sae:
        raise ValueError(f"k is {cfg.k}, more than the {cfg.d_sae} latents of d_sae.")


def _train_and_judge(cfg: DemoConfig, out: Path, started: float) -> pd.DataFrame:
    documents = documents_of(cfg.text) if cfg.text else cpython_reference()
    model = open_model(cfg.model, cfg.device, cfg.dtype)
    train_tokens, held_tokens = _tokens_in_time(cfg, model, documents, started)
    saes = _train_both(cfg, model, train_tokens, out)
    table = evaluate_saes(saes, model, held_tokens)[frontier_columns("demo")]
    write_csv(table, out / "frontier.csv")
    title = f"One SAE, every budget: {cfg.model}, layer {cfg.layer}, {cfg.d_sae} latents"
    plot_frontier(table, out / "frontier.png", title)
    return table


def _tokens_in_time(
    cfg: DemoConfig, model: HookedModel, documents: list[str], started: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``[n, CONTEXT_SIZE]`` to train on and held out: as many as this machine gets through
    in time. Says how long it will take.
    """
    train_tokens, held_tokens = (
        tokenize(part, model.tokenizer, CONTEXT_SIZE)
        for part in hold_out(documents, HELD_OUT, cfg.seed)
    )
    held_tokens = held_tokens[: max(1, cfg.eval_tokens // CONTEXT_SIZE)]
    speed = measure_speed(
        model, train_tokens, cfg.hook_name, _sae_config(cfg, model), TOKENS_PER_STEP
    )
    planned = plan_demo(
        speed,
        train_tokens.numel(),
        held_tokens.numel(),
        steps=2 * cfg.steps,
        passes=2 + 2 * len(powers_of_two(cfg.k)),  # clean, ablated, and each SAE at each budget
        seconds=60 * cfg.minutes - (time.perf_counter() - started),
    )
    n_train, n_held = (
        max(1, n // CONTEXT_SIZE) for n in (planned.train_tokens, planned.eval_tokens)
    )
    # A share is taken evenly from the whole text, not from its beginning.
    chosen = torch.linspace(0, len(train_tokens) - 1, n_train).long()
    train_tokens, held_tokens = train_tokens[chosen], held_tokens[:n_held]
    logger.info(
        f"{cfg.model} in {dtype_name(model_dtype(cfg.dtype, cfg.device))}, {cfg.hook_name}: "
        f"{train_tokens.numel():,} tokens to train on, {held_tokens.numel():,} held out. {planned}"
    )
    return train_tokens, held_tokens


def _train_both(
    cfg: DemoConfig, model: HookedModel, tokens: torch.Tensor, out: Path
) -> dict[str, HierarchicalTopKSAE]:
    """The SAE and its control by name, trained on the same activations in the same order."""
    saes = {}
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        activations = cache_activations(
            model,
            tokens,
            cfg.hook_name,
            Path(scratch) / "activations",
            mask=TokenMask.from_model(model, slice(FIRST_POSITION, None)),
            seed=cfg.seed,
        )
        for name, folder, budgets in (
            (HIERARCHICAL, out / "sae", None),
            (LOSS_AT_K, out / "control", [cfg.k]),
        ):
            logger.info(f"Training the {name} SAE: {cfg.steps} steps of {TOKENS_PER_STEP} tokens.")
            _train(cfg, model, tokens, activations, folder, budgets)
            _name_final_folder(folder, Path(cfg.out))
            saes[name] = HierarchicalTopKSAE.load_from_disk(folder, device=cfg.device)
    return saes


def _sae_config(
    cfg: DemoConfig, model: HookedModel, budgets: list[int] | None = None
) -> HierarchicalTopKTrainingSAEConfig:
    return HierarchicalTopKTrainingSAEConfig(
        d_in=model.cfg.d_model,
        d_sae=cfg.d_sae,
        k=cfg.k,
        budgets=budgets,
        device=cfg.device,
    )


def _train(
    cfg: DemoConfig,
    model: HookedModel,
    tokens: torch.Tensor,
    activations: Path,
    folder: Path,
    budgets: list[int] | None,
) -> None:
    runner_config: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
        sae=_sae_config(cfg, model, budgets),
        model_name=cfg.model,
        model_from_pretrained_kwargs={},
        hook_name=cfg.hook_name,
        dataset_path=cfg.text or "pydoc_data.topics",
        context_size=CONTEXT_SIZE,
        seqpos_slice=(FIRST_POSITION, None),
        exclude_special_tokens=True,
        use_cached_activations=True,
        cached_activations_path=str(activations),
        n_batches_in_buffer=64,
        training_tokens=cfg.steps * TOKENS_PER_STEP,
        train_batch_size_tokens=TOKENS_PER_STEP,
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
    with reading_several_times():
        HierarchicalTopKTrainingRunner(
            runner_config, override_dataset=token_dataset(tokens), override_model=model
        ).run()


def _name_final_folder(folder: Path, out: Path) -> None:
    """SAELens notes where a run wrote its SAE; this one is moved at the end."""
    file = folder / RUNNER_CFG_FILENAME
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(settings | {"output_path": str(out / folder.name)}, file)
