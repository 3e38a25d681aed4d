"""What ``hsae eval`` works on: its settings, and everything they name opened and checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens.evaluation.checks import all_budgets, check_same_hook
from hsae_lens.evaluation.config import EvalConfig, check_eval_settings
from hsae_lens.evaluation.frontier.errors import TokenErrors, token_errors
from hsae_lens.evaluation.frontier.own_metrics import OwnMetric, open_metrics, try_metrics
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import model_name_of, open_model_of
from hsae_lens.models.tokenizing import sample_tokens
from hsae_lens.objective.budgets import Budget
from hsae_lens.releases.opening import open_sae
from hsae_lens.sae.calibration import FEWEST_TOKENS, calibrate
from hsae_lens.sae.codes import masked_activations
from hsae_lens.sae.controls import RANDOM_DECODER, random_decoder
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE


@dataclass(frozen=True)
class EvalInputs:
    """What an evaluation works on. The last of ``saes`` is a random control, if there is one.

    budgets: of each of ``saes``, those to judge it at.  metrics: of the user's own.
    """

    cfg: EvalConfig
    saes: dict[str, SAE[Any]]
    budgets: dict[str, list[Budget]]
    model: HookedModel
    model_name: str
    tokens: torch.Tensor
    documents: torch.Tensor
    activations: torch.Tensor  # of the tokens that count
    sequences: torch.Tensor  # which sequence each of these is of
    metrics: dict[str, OwnMetric]

    @property
    def first(self) -> SAE[Any]:
        """The SAE a report is about."""
        return next(iter(self.saes.values()))

    @property
    def about(self) -> str:
        """Its name."""
        return next(iter(self.saes))

    @cached_property
    def errors(self) -> TokenErrors:
        """Its error on each token at every budget, if it is hierarchical: for several tables."""
        return token_errors(self.hierarchical()[self.about], self.activations)

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
    asked = cfg.budgets, cfg.mean_budgets, cfg.error_targets
    budgets = {name: all_budgets(sae, *asked, name) for name, sae in saes.items()}
    first = next(iter(saes.values()))
    metrics = open_metrics(cfg.metrics)
    try_metrics(metrics, first.cfg.d_in, cfg.device)
    model = open_model_of(first, cfg.model, cfg.device, cfg.dtype)
    context = first.cfg.metadata.context_size
    tokens, documents = sample_tokens(cfg.text, model.tokenizer, context, cfg.tokens)
    activations, sequences = masked_activations(first, model, tokens, cfg.batch_size or None)
    if isinstance(first, HierarchicalTopKSAE):
        control = saes[RANDOM_DECODER] = random_decoder(first, activations[:2048])
        if cfg.mean_budgets or cfg.error_targets:
            if len(activations) < FEWEST_TOKENS:
                raise ValueError(
                    f"{len(activations)} tokens are left to judge: too few to set the thresholds "
                    f"of the random control, which takes {FEWEST_TOKENS}. Judge more (--tokens)."
                )
            calibrate(control, activations[:2048], progress=False)
        budgets[RANDOM_DECODER] = all_budgets(control, *asked, RANDOM_DECODER)
    model_name = str(cfg.model or model_name_of(first))
    return EvalInputs(
        cfg, saes, budgets, model, model_name, tokens, documents, activations, sequences, metrics
    )
