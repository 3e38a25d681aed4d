"""Whole training runs through SAELens' runner, the language model in the loop."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import sae_lens
import torch
from datasets import Dataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
)

from benchmarks.problems import Shape
from benchmarks.session import Session
from benchmarks.timing import interleaved
from hsae_lens import HierarchicalTopKTrainingSAEConfig
from hsae_lens.models.devices import dtype_name, model_dtype
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import token_dataset, tokenize
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner

HOOK = "blocks.15.hook_resid_post"
CONTEXT = 128
SHAPE = Shape(1024, 576, 4608, 64)
STEPS = 32
ROUNDS = 3  # of about ten seconds each


def end_to_end(run: Session) -> list[dict[str, Any]]:
    """Tokens per second of a run from the first batch to the saved SAE (SmolLM2-135M, block 15).

    Ours over every budget in our runner, SAELens' TopK for one k in SAELens' own; beside them the
    model alone up to that block. Buffers are filled and SAEs saved within the time.
    """
    model = open_model("smollm2-135m", run.device)
    tokens = tokenize(cpython_reference(), model.tokenizer, CONTEXT, progress=False)
    data = token_dataset(tokens)
    batch = tokens[: SHAPE.tokens // CONTEXT]
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: _run(HierarchicalTopKTrainingRunner, _ours(run.device), model, data),
        "saelens": lambda: _run(LanguageModelSAETrainingRunner, _stock(run.device), model, data),
        "model": lambda: [hook_activations(model, batch, HOOK) for _ in range(STEPS)],
    }
    times = interleaved(calls, ROUNDS, run.device, warmup=1)
    row: dict[str, Any] = {
        "shape": vars(SHAPE),
        "steps": STEPS,
        "dtype": dtype_name(model_dtype(device=run.device)),
    }
    for name, timing in times.items():
        rate = STEPS * SHAPE.tokens / timing.median
        row[name] = {**timing.to_json(), "tokens_per_s": rate}
        print(f"{name}: {rate:.0f} tokens/s")
    return [row]


def _ours(device: str) -> HierarchicalTopKTrainingSAEConfig:
    return HierarchicalTopKTrainingSAEConfig(**_sizes(), device=device)


def _stock(device: str) -> TopKTrainingSAEConfig:
    return TopKTrainingSAEConfig(**_sizes(), device=device)


def _sizes() -> dict[str, Any]:
    return {"d_in": SHAPE.d_in, "d_sae": SHAPE.d_sae, "k": SHAPE.k}


def _run(runner: type[LanguageModelSAETrainingRunner], sae: Any, model: Any, data: Dataset) -> None:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        cfg: LanguageModelSAERunnerConfig[Any] = LanguageModelSAERunnerConfig(
            sae=sae,
            model_name="smollm2-135m",
            model_from_pretrained_kwargs={},
            hook_name=HOOK,
            context_size=CONTEXT,
            training_tokens=STEPS * SHAPE.tokens,
            train_batch_size_tokens=SHAPE.tokens,
            store_batch_size_prompts=SHAPE.tokens // CONTEXT,
            n_batches_in_buffer=8,
            device=sae.device,
            checkpoint_path=None,
            output_path=folder,
            logger=LoggingConfig(log_to_wandb=False),
            verbose=False,
        )
        torch.manual_seed(0)
        runner(cfg, override_dataset=data, override_model=model).run()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = sae_lens.logger.level
    sae_lens.logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            yield
    finally:
        sae_lens.logger.setLevel(level)
