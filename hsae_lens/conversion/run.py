"""``hsae convert``: a source taken over, fine-tuned at every budget, judged before and after."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE, JumpReLUSAE, LanguageModelSAERunnerConfig, LoggingConfig

from hsae_lens._util.atomic_files import replacing_files
from hsae_lens._util.paths import expand_home
from hsae_lens.conversion.config import ConvertConfig, check_convert_settings, check_out
from hsae_lens.conversion.finetuning import (
    ConversionRunner,
    SettlingTrainer,
    learning_rate_settings,
)
from hsae_lens.conversion.moved import latents_moved
from hsae_lens.conversion.reordering import train_only_gains_and_biases
from hsae_lens.conversion.result import (
    CONVERTED,
    SOURCE_IN_ORDER,
    SOURCE_ITSELF,
    Conversion,
    write_conversion,
)
from hsae_lens.evaluation import evaluate_activations, evaluate_saes
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import model_name_of, open_model_of
from hsae_lens.models.text_files import cpython_reference, documents_of, hold_out
from hsae_lens.models.token_mask import TokenMask, longest_activation
from hsae_lens.models.tokenizing import DEFAULT_CONTEXT, evenly, token_dataset, tokenize
from hsae_lens.objective.budgets import MeanBudget, powers_of_two
from hsae_lens.releases.sources import open_source
from hsae_lens.sae.codes import masked_activations
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.outliers import Outliers
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAE
from hsae_lens.training.activation_cache import (
    cache_activations,
    check_cache,
    reading_several_times,
    rows_of_cache,
)
from hsae_lens.training.checks import check_hook, check_runner_settings

logger = logging.getLogger(__name__)

JUDGED_SHARE = 0.1  # of the text

FACTS_OF_THE_SOURCE = ("model_name", "open_with", "model_from_pretrained_kwargs", "prepend_bos")
"""In its metadata, where the runner would write how the model was opened here."""

LOOKED_AT_TOKENS = 1024  # to look at the frontier on while training


@dataclass(frozen=True)
class _Sequences:
    """Tokens ``[n, context]`` to train on, to look at while training, and to judge on."""

    train: torch.Tensor
    validation: torch.Tensor
    held: torch.Tensor


def convert_sae(source: str | Path, cfg: ConvertConfig) -> Conversion:
    """Makes a hierarchical SAE of one that was trained for one budget.

    Takes it over exactly (:meth:`HierarchicalTopKTrainingSAE.from_sae`), fine-tunes it with every
    budget in the loss on its model and a text, and judges it on held-out documents as it was and
    as it is. Leaves in ``out``: the SAE, its card ``README.md``, ``frontier.csv`` and ``.png``,
    ``latents.csv`` (how far each latent moved) and ``convert.json`` (settings, what was seen on the
    way); all of it or nothing.

    Args:
        source: what :func:`hsae_lens.releases.sources.open_source` opens.

    Raises:
        ValueError: for an SAE that cannot be converted, settings that cannot be, a source without
            k, hook or model where none is given, a width that is not the hook's, or too little
            text; before anything is trained.
        FileNotFoundError: if there is no such source or text.
    """
    check_convert_settings(cfg)
    check_out(cfg.out, source)
    stock = open_source(source, cfg.device)
    _complete(stock, cfg)
    sae = HierarchicalTopKTrainingSAE.from_sae(stock, k=cfg.k, budget_weights=cfg.budget_weights)
    runner_cfg = _runner_config(cfg, sae)
    check_runner_settings(runner_cfg)
    if cfg.cached_activations is not None:
        check_cache(cfg.cached_activations, runner_cfg)
    model = open_model_of(stock, cfg.model, cfg.device, cfg.dtype)
    check_hook(model, runner_cfg)
    sequences = _sequences(cfg, model, stock.cfg.metadata.context_size)
    with replacing_files(expand_home(cfg.out)) as fresh:
        with tempfile.TemporaryDirectory(dir=fresh) as scratch:
            parts = cfg, stock, sae, runner_cfg, model, sequences
            conversion, after = _convert(*parts, Path(scratch))
        write_conversion(conversion, after, cfg, fresh)
    return conversion


def _complete(stock: SAE[Any], cfg: ConvertConfig) -> None:
    """Settles hook, model and context of the source, by flags where it does not say them."""
    metadata = stock.cfg.metadata
    metadata.hook_name = cfg.hook_name or metadata.hook_name
    metadata.context_size = cfg.context_size or metadata.context_size or DEFAULT_CONTEXT
    if not metadata.hook_name:
        raise ValueError("The source does not say its hook: give it, as --hook-name.")
    if not (cfg.model or model_name_of(stock)):
        raise ValueError("The source does not say its language model: give it, as --model.")
    if cfg.model and cfg.model != model_name_of(stock):
        metadata.open_with, metadata.model_name = None, cfg.model
    if metadata.prepend_bos is False or metadata.model_from_pretrained_kwargs:
        logger.warning(
            "The source was trained without BOS, or on processed weights (%s): here sequences "
            "begin with BOS, and weights are as saved.", metadata.model_from_pretrained_kwargs,
        )  # fmt: skip


def _sequences(cfg: ConvertConfig, model: HookedModel, context: int) -> _Sequences:
    """The text's documents, a tenth held out; of each part sequences taken evenly."""
    longest = getattr(model.cfg, "n_ctx", None)
    if longest and context > longest:
        raise ValueError(
            f"Sequences of {context} tokens are longer than the {longest} that the model reads: "
            "give fewer (--context-size)."
        )
    documents = documents_of(cfg.text) if cfg.text else cpython_reference()
    if cfg.text is None:
        logger.info("Text: CPython's reference; the kind that the source knows (text) is better.")
    kept, held = (
        tokenize(part, model.tokenizer, context)
        for part in hold_out(documents, JUDGED_SHARE, cfg.seed)
    )
    looked_at = max(1, LOOKED_AT_TOKENS // context)
    if len(kept) <= looked_at:
        raise ValueError(
            f"The text has {kept.numel():,} tokens to train on, too few: give more (text), or "
            "shorter sequences (context_size)."
        )
    train = kept[:-looked_at]
    return _Sequences(
        train[evenly(train, cfg.train_tokens)],
        kept[-looked_at:],
        held[evenly(held, cfg.eval_tokens)],
    )


def _runner_config(
    cfg: ConvertConfig, sae: HierarchicalTopKTrainingSAE
) -> LanguageModelSAERunnerConfig[Any]:
    metadata = sae.cfg.metadata
    return LanguageModelSAERunnerConfig(
        sae=sae.cfg,
        model_name=str(model_name_of(sae)),
        model_from_pretrained_kwargs={},
        hook_name=metadata.hook_name,
        dataset_path=cfg.text or "pydoc_data.topics",  # where CPython's reference is
        context_size=metadata.context_size,
        seqpos_slice=tuple(metadata.seqpos_slice or (None,)),
        exclude_special_tokens=True,
        use_cached_activations=True,
        n_batches_in_buffer=max(64, -(-2 * cfg.batch_size // metadata.context_size)),
        training_tokens=max(1, cfg.steps) * cfg.batch_size,
        train_batch_size_tokens=cfg.batch_size,
        **learning_rate_settings(cfg.steps, cfg.learning_rate(sae.cfg.d_sae)),
        device=cfg.device,
        seed=cfg.seed,
        checkpoint_path=None,
        output_path=str(expand_home(cfg.out)),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )


def _convert(
    cfg: ConvertConfig,
    stock: SAE[Any],
    sae: HierarchicalTopKTrainingSAE,
    runner_cfg: LanguageModelSAERunnerConfig[Any],
    model: HookedModel,
    sequences: _Sequences,
    folder: Path,
) -> tuple[Conversion, HierarchicalTopKSAE]:
    """Fine-tunes and judges; works in a ``folder`` that is thrown away."""
    sae.save_inference_model(folder / "before")
    trainer, seconds = None, 0.0
    if cfg.steps:
        trainer, seconds = _fine_tune(cfg, sae, runner_cfg, model, sequences, folder)
    before, after = (
        HierarchicalTopKSAE.load_from_disk(folder / name, device=cfg.device)
        for name in ("before", "after" if trainer else "before")
    )
    for name in FACTS_OF_THE_SOURCE:
        after.cfg.metadata[name] = before.cfg.metadata[name]
    activations, _ = masked_activations(after, model, sequences.held)
    conversion = Conversion(
        frontier=_frontiers(stock, before, after, model, sequences.held),
        spent=_spent_on_average(after, activations),
        moved=latents_moved(before, after, activations),
        seen=trainer.seen if trainer else [],
        steps=trainer.n_training_steps if trainer else 0,
        seconds=seconds,
    )
    return conversion, after


def _fine_tune(
    cfg: ConvertConfig,
    sae: HierarchicalTopKTrainingSAE,
    runner_cfg: LanguageModelSAERunnerConfig[Any],
    model: HookedModel,
    sequences: _Sequences,
    folder: Path,
) -> tuple[SettlingTrainer, float]:
    """Trains on activations that are kept in ``folder``; leaves the SAE there, as ``after``.

    Also how many seconds that took, without collecting activations.
    """
    validation, _ = masked_activations(sae, model, sequences.validation)
    Outliers().find_limit(sae, validation)  # before the first look, as the first step would
    validation = validation[~(validation.norm(dim=-1) > longest_activation(sae))]
    if cfg.only_reorder:
        train_only_gains_and_biases(sae, validation)
    cached = cfg.cached_activations or cache_activations(
        model,
        sequences.train,
        runner_cfg.hook_name,
        folder / "activations",
        mask=TokenMask.from_sae(sae, model),
        seed=cfg.seed,
    )
    runner_cfg.cached_activations_path = str(cached)
    runner_cfg.store_batch_size_prompts = min(32, rows_of_cache(cached))
    runner_cfg.output_path = str(folder / "after")
    torch.manual_seed(cfg.seed)
    with reading_several_times():
        runner = ConversionRunner(
            runner_cfg,
            validation,
            override_dataset=token_dataset(sequences.train),
            override_model=model,
            override_sae=sae,
        )
        started = time.perf_counter()
        runner.run()
    return runner.trainer, time.perf_counter() - started


def _frontiers(
    stock: SAE[Any],
    before: HierarchicalTopKSAE,
    after: HierarchicalTopKSAE,
    model: HookedModel,
    tokens: torch.Tensor,
) -> pd.DataFrame:
    """Both on the same tokens: those that the fine-tuned one counts (outliers it has found)."""
    budgets: dict[str, list[int]] = {
        name: powers_of_two(before.cfg.k) for name in (SOURCE_IN_ORDER, CONVERTED)
    }
    saes: dict[str, SAE[Any]] = {SOURCE_IN_ORDER: before, CONVERTED: after}
    if isinstance(stock, JumpReLUSAE):  # what no fixed budget is: latents as its thresholds ask
        saes[SOURCE_ITSELF], budgets[SOURCE_ITSELF] = stock, [stock.cfg.d_sae]
    table = evaluate_saes(saes, model, tokens, budgets, mask=TokenMask.from_sae(after, model))
    own = table["sae"] == SOURCE_ITSELF
    table.loc[own, "k"] = table.loc[own, "l0"].round().astype(int)
    return table


def _spent_on_average(sae: HierarchicalTopKSAE, activations: torch.Tensor) -> pd.DataFrame:
    """What mean budgets use and explain, for the card; no rows of an SAE without thresholds."""
    if not sae.cfg.calibration:
        return pd.DataFrame()
    budgets = [MeanBudget(k) for k in powers_of_two(sae.cfg.k)]
    return evaluate_activations(sae, activations, budgets, progress=False)
