"""Small settings of SAELens' training runner, for the tiny Gemma-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from hsae_lens import HierarchicalTopKTrainingSAEConfig

HOOK = "blocks.1.hook_resid_post"


def sae_config(**overrides: Any) -> HierarchicalTopKTrainingSAEConfig:
    return HierarchicalTopKTrainingSAEConfig(**{"d_in": 32, "d_sae": 64, "k": 8, **overrides})


def runner_config(tmp_path: Path, sae: Any = None, **overrides: Any) -> Any:
    settings = {
        "sae": sae or sae_config(),
        "model_name": "tiny-gemma2",
        "model_from_pretrained_kwargs": {},
        "hook_name": HOOK,
        "context_size": 32,
        "training_tokens": 20 * 128,
        "train_batch_size_tokens": 128,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 16,
        "n_batches_for_norm_estimate": 2,
        "lr": 3e-3,
        "checkpoint_path": str(tmp_path / "checkpoints"),
        "output_path": str(tmp_path / "out"),
        "logger": LoggingConfig(log_to_wandb=False),
        "verbose": False,
        **overrides,
    }
    return LanguageModelSAERunnerConfig(**settings)
