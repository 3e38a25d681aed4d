"""What ``hsae eval`` works on: its settings, and everything they name opened and checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens.evaluation.checks import budgets_of, check_same_hook
from hsae_lens.evaluation.frontier.metrics import check_bootstrap
from hsae_lens.evaluation.frontier.token_errors import TokenErrors, token_errors
from hsae_lens.models.devices import AUTO, model_device, model_dtype
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import model_name_of, open_model_of
from hsae_lens.models.text_files import open_text
from hsae_lens.models.tokenizing import sample_tokens
from hsae_lens.releases.opening import open_sae
from hsae_lens.sae.codes import masked_activations
from hsae_lens.sae.controls import RANDOM_DECODER, random_decoder
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE


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


@dataclass(frozen=True)
class EvalInputs:
    """What an evaluation works on. The last of ``saes`` is a random control, if there is one."""

    cfg: EvalConfig
    saes: dict[str, SAE[Any]]
    model: HookedModel
    model_name: str
    tokens: torch.Tensor
    documents: torch.Tensor
    activations: torch.Tensor  # of the tokens that count
    sequences: torch.Tensor  # which sequence each of these is of

    @property
    def first(self) -> SAE[Any]:
        """The SAE a report is about."""
        return next(iter(self.saes.values()))

    @property
    def first_hierarchical(self) -> HierarchicalTopKSAE:
        """The same SAE, for what only a hierarchical one is asked."""
        assert isinstance(self.first, HierarchicalTopKSAE)
        return self.first

    @cached_property
    def errors(self) -> TokenErrors:
        """Its error on each token at every budget: several tables are made from it."""
        return token_errors(self.first_hierarchical, self.activations)

    @property
    def hook_name(self) -> str:
        return str(self.first.cfg.metadata.hook_name)

    def hierarchical(self) -> dict[str, HierarchicalTopKSAE]:
        """The hierarchical ones among the SAEs, the control included."""
        return {n: s for n, s in self.saes.items() if isinstance(s, HierarchicalTopKSAE)}


def open_inputs(cfg: EvalConfig) -> EvalInputs:
    """Opens the SAEs, the model and the text; see :class:`EvalConfig`.

    Raises:
        ValueError, FileNotFoundError: as :func:`run_eval`, before the model is opened.
    """
    check_eval_settings(cfg)
    saes = {name: open_sae(name, cfg.device, "float32") for name in cfg.saes}
    check_same_hook(saes)
    for name, sae in saes.items():
        budgets_of(sae, cfg.budgets, name)
    first = next(iter(saes.values()))
    model = open_model_of(first, cfg.model, cfg.device, cfg.dtype)
    context = first.cfg.metadata.context_size
    tokens, documents = sample_tokens(cfg.text, model.tokenizer, context, cfg.tokens)
    activations, sequences = masked_activations(first, model, tokens, cfg.batch_size or None)
    if isinstance(first, HierarchicalTopKSAE):
        saes[RANDOM_DECODER] = random_decoder(first, activations[:2048])
    model_name = str(cfg.model or model_name_of(first))
    return EvalInputs(cfg, saes, model, model_name, tokens, documents, activations, sequences)
