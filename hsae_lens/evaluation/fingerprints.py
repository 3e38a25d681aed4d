"""Short names for a model and an SAE, so that what is kept of another one is never taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens.objective.budgets import Budget, ErrorTarget, MeanBudget
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

SAMPLE = 4096  # numbers looked at in each weight of a model

WHERE_FROM = {"device", "n_devices", "model_name", "tokenizer_name", "_name_or_path",
          "transformers_version"}  # fmt: skip
"""Entries of a model's config that say where it is or came from, not what it computes."""

POSITIONS = ("hook_name", "seqpos_slice", "max_norm")
"""The metadata that says which activations an SAE is judged on."""

TOKENIZED = "The 3 snakes' café cost $4.50,\n\tdidn't it?  def f(x): return x**2  # 漢字 🎉"


def sae_fingerprint(sae: SAE[Any]) -> str:
    """Of everything that decides an SAE's code at a given budget: weights, config, positions."""
    config = sae.cfg.to_dict()
    metadata = sae.cfg.metadata
    config |= {"device": None, "default_budget": None, "metadata": None}
    config.pop("calibration", None)  # decides nothing at fixed budgets; see work_name
    return _digest(
        sorted(sae.state_dict().items()), config, {name: metadata[name] for name in POSITIONS}
    )


def work_name(sae: HierarchicalTopKSAE, budget: Budget) -> str:
    """Of what is kept for an SAE at a budget; by another calibration it is another."""
    if isinstance(budget, MeanBudget):
        return f"k-{budget}-above-{sae.calibration.threshold(budget):.9g}"
    if isinstance(budget, ErrorTarget):
        return f"k-{budget}-of-{sae.calibration.variance:.9g}"
    return f"k-{budget}"


def model_fingerprint(model: Any, tokenizer: Any = None) -> str:
    """Of a language model, hooked or Hugging Face's own (then with its tokenizer): up to 4,096
    evenly spaced numbers of every weight, the weights' names, shapes and dtypes, its config, its
    chat template, and how its tokenizer cuts one odd sentence.

    A tenth of a second for SmolLM2, instead of reading all weights. It tells trained models, seeds
    and number formats apart; a change to a few numbers of a large weight may escape it.
    """
    original = getattr(model, "original_model", model)
    configs = [getattr(model, "cfg", None), getattr(original, "config", None)]
    settings = [
        {key: value for key, value in config.to_dict().items() if key not in WHERE_FROM}
        for config in configs
        if config is not None
    ]
    tokenizer = tokenizer or model.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    sampled = (
        (f"{name} {tuple(weight.shape)} {weight.dtype}", _evenly_spaced(weight))
        for name, weight in model.named_parameters()
    )
    return _digest(sampled, settings, template, tokenizer(TOKENIZED)["input_ids"])


def _evenly_spaced(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, -(-len(flat) // SAMPLE))]


def _digest(weights: Iterable[tuple[str, torch.Tensor]], *facts: Any) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, weight in weights:
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
