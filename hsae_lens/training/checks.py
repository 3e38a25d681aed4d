"""Looks at a training run's settings before anything is opened, and at its hook before anything is
collected there. SAELens finds these mistakes in the middle of a run, or never.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.util import str_to_dtype

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.models.devices import model_device
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import hook_activations

HOOK_Z = "attn.hook_z"  # the only hook with heads that SAELens' SAEs can join

PAIRS_OF_POSITIONS = ("attn.hook_pattern", "attn.hook_attn_scores")

LARGEST_LEARNING_RATE = 1e31

COUNTS = (
    "training_tokens",
    "train_batch_size_tokens",
    "store_batch_size_prompts",
    "n_batches_in_buffer",
    "n_batches_for_norm_estimate",
    "feature_sampling_window",
    "dead_feature_window",
    "sae.d_in",
    "sae.d_sae",
)

Rule = tuple[str, Callable[[Any], bool], str]


def _at_least_1(setting: str) -> Rule:
    return setting, lambda cfg: attrgetter(setting)(cfg) >= 1, "must be at least 1"


def _cycles_have_steps(cfg: Any) -> bool:
    scheduler = cfg.lr_scheduler_name.lower()
    if scheduler not in ("cosineannealing", "cosineannealingwarmrestarts"):
        return True
    cycles = cfg.n_restart_cycles if scheduler.endswith("restarts") else 1
    steps = cfg.total_training_steps - max(0, cfg.lr_warm_up_steps) - max(0, cfg.lr_decay_steps)
    return 1 <= cycles <= steps


def _joins_heads_where_there_are_some(cfg: Any) -> bool:
    has_heads = cfg.hook_name.endswith(HOOK_Z) and cfg.hook_head_index is None
    return cfg.sae.reshape_activations == ("hook_z" if has_heads else "none")


def _has_sparse_gradient(cfg: Any) -> bool:
    sparse = cfg.sae.architecture() == "topk" and cfg.sae.use_sparse_activations
    return not (sparse and cfg.sae.rescale_acts_by_decoder_norm and cfg.device == "cpu")


RULES: tuple[Rule, ...] = (
    *map(_at_least_1, COUNTS),
    (
        "lr",
        lambda cfg: 0 < cfg.lr < LARGEST_LEARNING_RATE,
        f"must be above 0 and below {LARGEST_LEARNING_RATE:g}: float32 holds no larger step",
    ),
    (
        "n_restart_cycles",
        _cycles_have_steps,
        "must be at least 1, and there must be a training step (of train_batch_size_tokens) for "
        "each besides lr_warm_up_steps and lr_decay_steps",
    ),
    (
        "sae.k",
        lambda cfg: not hasattr(cfg.sae, "k") or 0 < cfg.sae.k <= cfg.sae.d_sae,
        "must be above 0 and at most d_sae",
    ),
    (
        "sae.decoder_init_norm",
        lambda cfg: cfg.sae.decoder_init_norm is None or 0 < cfg.sae.decoder_init_norm < math.inf,
        "must be a finite number above 0, or None to leave the weights as they are drawn",
    ),
    (
        "sae.reshape_activations",  # else SAELens trains and saves what cannot be used there
        _joins_heads_where_there_are_some,
        f'must be "hook_z" at hooks that end in {HOOK_Z} (without a hook_head_index), and "none" '
        "at all others",
    ),
    (
        "sae.use_sparse_activations",  # SAELens' gradient then needs what PyTorch's CPU lacks
        _has_sparse_gradient,
        "must be False for topk on a CPU, or rescale_acts_by_decoder_norm False",
    ),
    (
        "hook_name",
        lambda cfg: not cfg.hook_name.endswith(PAIRS_OF_POSITIONS),
        "must be of a hook with a vector for each token, not a number for each pair of them",
    ),
)
"""Settings, what must hold of them, and how that is said. To refuse another setting, add a row."""


def check_runner_settings(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Looks at a run's settings before anything is opened.

    Raises:
        ValueError: for one that cannot be: names it, its value and what it may be. Also for devices
            that are not here, and where results cannot be written.
    """
    for setting, holds, requirement in RULES:
        if not holds(cfg):
            name = setting.removeprefix("sae.")
            raise ValueError(f"{name} {requirement}, got {attrgetter(setting)(cfg)!r}.")
    for device in (cfg.device, cfg.llm_device, cfg.act_store_device):
        model_device(device or cfg.device)
    for dtype in (cfg.dtype, cfg.sae.dtype):
        str_to_dtype(dtype)
    for name in ("output_path", "checkpoint_path"):
        if (folder := getattr(cfg, name)) is not None:
            _check_can_write(name, folder)


def _check_can_write(name: str, folder: str) -> None:
    path = Path(folder).absolute()
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        raise ValueError(f"{name} {folder}: {existing} {what}. Give another folder.")


def check_hook(model: HookedModel, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Runs two tokens to the hook, before anything is collected there.

    Raises:
        ValueError: if the model has no such hook (the nearest are said), no such head there, or the
            width is not d_in.
    """
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    try:
        acts = hook_activations(model, tokens, cfg.hook_name)  # [1, 2, (heads,) width]
    except ValueError as error:
        raise ValueError(f"{error}{did_you_mean(cfg.hook_name, model.hook_dict)}") from error
    if cfg.hook_head_index is not None:
        heads = acts.shape[2] if acts.dim() == 4 else 0
        if not -heads <= cfg.hook_head_index < heads:
            may = f"below {heads}" if heads else "None"
            raise ValueError(
                f"hook_head_index is {cfg.hook_head_index}, but {cfg.hook_name} of "
                f"{cfg.model_name} has {heads or 'no'} heads: it must be {may}."
            )
        acts = acts[:, :, cfg.hook_head_index]
    width = acts[0, 0].numel()
    if width != cfg.sae.d_in:
        raise ValueError(
            f"d_in is {cfg.sae.d_in}, but {cfg.hook_name} of {cfg.model_name} has width {width}: "
            f"set d_in to {width}."
        )
