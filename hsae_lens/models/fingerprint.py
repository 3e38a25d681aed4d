"""A short name for a language model, so that what is kept of another one is never taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch

SAMPLE = 4096  # numbers looked at in each weight of a model

WHERE_FROM = {"device", "n_devices", "model_name", "tokenizer_name", "_name_or_path",
          "transformers_version"}  # fmt: skip
"""Entries of a model's config that say where it is or came from, not what it computes."""

TOKENIZED = "The 3 snakes' café cost $4.50,\n\tdidn't it?  def f(x): return x**2  # 漢字 🎉"


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
        {key: value for key, value in _entries(config).items() if key not in WHERE_FROM}
        for config in configs
        if config is not None
    ]
    tokenizer = tokenizer or model.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    sampled = (
        (f"{name} {tuple(weight.shape)} {weight.dtype}", _evenly_spaced(weight))
        for name, weight in model.named_parameters()
    )
    return digest(sampled, settings, template, tokenizer(TOKENIZED)["input_ids"])


def _entries(config: Any) -> dict[str, Any]:
    """Of a model's config; one that is neither library's may be any object."""
    entries: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    return entries


def _evenly_spaced(weight: torch.Tensor) -> torch.Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, -(-len(flat) // SAMPLE))]


def digest(weights: Iterable[tuple[str, torch.Tensor]], *facts: Any) -> str:
    """Twelve characters of named weights, and of whatever else can be JSON."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, weight in weights:
        found.update(name.encode())
        found.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
