"""One pass over the language model for all depths, then an SAE at each from its activations."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAEConfig
from hsae_lens._util.atomic_files import replacing_file, write_json
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.smollm2 import SMOLLM2
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.models.tokenizing import token_dataset, tokenize
from hsae_lens.training.activation_cache import (
    cache_activations,
    reading_several_times,
    rows_of_cache,
)
from hsae_lens.training.checkpoints import missing_from_checkpoint
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner
from shipped_sae.describing import round_and_describe
from shipped_sae.settings import (
    CONTEXT,
    D_SAE,
    DATASET,
    FIRST_POSITION,
    LR,
    TOKENS_PER_STEP,
    K,
)

BUFFER = 64  # sequences whose tokens SAELens mixes; the cache has shuffled them already


def trained_saes(
    args: argparse.Namespace, model: HookedModel, texts: list[str], hooks: Sequence[str]
) -> list[HierarchicalTopKSAE]:
    """Trains an SAE at each hook, or goes on with it, and says in its metadata what it is."""
    missing = [hook for hook in hooks if not _time_file(args, hook).exists()]
    if missing:
        tokens = _tokens_to_train_on(args, model, texts)
        with noting_minutes(collecting := args.runs / "collecting.txt"):
            activations = cache_activations(
                model, tokens, hooks, args.runs / "activations", mask=_mask(model), seed=args.seed
            )
        for hook in missing:
            with noting_minutes(training := args.runs / hook / "training.txt"):
                _train(args, model, tokens, texts, activations, hook)
            _note_time(_time_file(args, hook), collecting, len(hooks), training)
        shutil.rmtree(activations)  # gigabytes
    return [_described(args, hook) for hook in hooks]


def _time_file(args: argparse.Namespace, hook: str) -> Path:
    """Of one depth; written when its SAE is saved."""
    folder: Path = args.runs / hook
    return folder / "time.txt"


def _note_time(file: Path, collecting: Path, n_hooks: int, training: Path) -> None:
    together = f" for {n_hooks} hooks together" if n_hooks > 1 else ""
    threads = torch.get_num_threads()
    with replacing_file(file) as fresh:
        fresh.write_text(
            f"{collecting.read_text()} to collect activations{together}, {training.read_text()} to "
            f"train on them; {threads} thread{'s' if threads > 1 else ''}"
        )


def _described(args: argparse.Namespace, hook: str) -> HierarchicalTopKSAE:
    sae = HierarchicalTopKSAE.load_from_disk(args.runs / hook / "sae", device=args.device)
    round_and_describe(sae, args.steps, args.seed, args.dtype)
    sae.cfg.metadata.training_time = _time_file(args, hook).read_text()
    return sae


@contextmanager
def noting_minutes(file: Path) -> Iterator[None]:
    """Writes how long something took into ``file`` when it is done, with its stopped attempts.

    How long a killed one was at it nobody knows: then it is "at least" so long.
    """
    notes = file.with_suffix(".json")
    before = json.loads(notes.read_text()) if notes.exists() else {"seconds": 0.0, "killed": False}
    killed, started = before["killed"] or before.get("running", False), time.perf_counter()
    write_json(before | {"running": True}, notes)
    try:
        yield
    finally:
        seconds = before["seconds"] + time.perf_counter() - started
        write_json({"seconds": seconds, "killed": killed}, notes)
    with replacing_file(file) as fresh:
        fresh.write_text(f"{'at least ' if killed else ''}{seconds / 60:.0f} minutes")


def _mask(model: HookedModel) -> TokenMask:
    return TokenMask.from_model(model, slice(FIRST_POSITION, None))


def _tokens_to_train_on(
    args: argparse.Namespace, model: HookedModel, texts: list[str]
) -> torch.Tensor:
    """Random sequences ``[n, CONTEXT]``: all, or a few more than the steps read."""
    tokens = tokenize(texts, model.tokenizer, CONTEXT)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(args.seed))
    tokens = tokens[order]
    counted = _mask(model)(tokens, torch.zeros(*tokens.shape, 1)).sum(-1).cumsum(0)
    needed = args.steps * TOKENS_PER_STEP
    if counted[-1] < needed:
        print(f"The text has {counted[-1]:,} tokens, fewer than {needed:,}: they are read again.")
    enough = 1.01 * needed + 2 * BUFFER * CONTEXT  # what SAELens' buffer holds is not served
    return tokens[: int((counted < enough).sum()) + 1]


def _train(
    args: argparse.Namespace,
    model: HookedModel,
    tokens: torch.Tensor,
    texts: list[str],
    activations: Path,
    hook: str,
) -> None:
    folder = args.runs / hook
    sae = HierarchicalTopKTrainingSAEConfig(
        d_in=model.cfg.d_model,
        d_sae=D_SAE,
        k=K,
        budget_weights="inverse_sqrt",
        device=args.device,
    )
    sae.metadata.max_norm = _longest(model, hook, texts)
    cfg: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=SMOLLM2,
        model_from_pretrained_kwargs={},
        hook_name=hook,
        dataset_path=DATASET,
        context_size=CONTEXT,
        seqpos_slice=(FIRST_POSITION, None),
        exclude_special_tokens=True,
        use_cached_activations=True,
        cached_activations_path=str(activations / hook),
        training_tokens=args.steps * TOKENS_PER_STEP,
        train_batch_size_tokens=TOKENS_PER_STEP,
        store_batch_size_prompts=min(32, rows_of_cache(activations / hook)),
        n_batches_in_buffer=BUFFER,
        lr=LR,
        lr_warm_up_steps=args.steps // 20,
        lr_decay_steps=args.steps * 2 // 5,
        device=args.device,
        seed=args.seed,
        n_checkpoints=10,
        checkpoint_path=str(folder / "checkpoints"),
        resume_from_checkpoint=latest_checkpoint(folder / "checkpoints"),
        output_path=str(folder / "sae"),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    torch.manual_seed(args.seed)
    with reading_several_times():
        HierarchicalTopKTrainingRunner(
            cfg, override_dataset=token_dataset(tokens), override_model=model
        ).run()


def _longest(model: HookedModel, hook: str, texts: list[str]) -> int:
    """Five times the usual norm: what is longer is an outlier, in training and in judging."""
    tokens = tokenize(texts[:200], model.tokenizer, CONTEXT)[:32]
    acts = hook_activations(model, tokens, hook)[:, FIRST_POSITION:]
    return round(5 * acts.float().norm(dim=-1).median().item())


def latest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; says which it passes over, and why."""
    found = [file.parent for file in folder.rglob("cfg.json")]
    for checkpoint in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        missing = missing_from_checkpoint(checkpoint)
        unfinished = any(part.startswith(".") for part in checkpoint.relative_to(folder).parts)
        if not missing and not unfinished:
            return str(checkpoint)
        why = f"{', '.join(missing)} missing or cut short" if missing else "saving was interrupted"
        print(f"Passed over the checkpoint {checkpoint}: {why}.")
    return None
