"""A hook's activations kept on disk, where SAELens' runner reads them."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import sae_lens
import torch
from sae_lens import LanguageModelSAERunnerConfig
from tqdm.auto import tqdm

from hsae_lens._util.atomic_files import replacing_folder
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.token_mask import TokenMask, masked_batches

SEQUENCES_PER_SHARD = 1024  # shuffled together

CACHE_MARK = "hsae_activations.json"  # in a data set that cache_activations wrote

CACHE_FILES = (CACHE_MARK, "dataset_info.json", "state.json")  # and *.arrow


@torch.no_grad()
def cache_activations(
    model: HookedModel,
    tokens: torch.Tensor,
    hook_name: str,
    folder: str | Path,
    *,
    mask: TokenMask | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Path:
    """Runs the model once and keeps a hook's activations where SAELens' runner reads them.

    For training several SAEs, or several epochs, on the same activations: pass the folder as
    ``cached_activations_path`` with ``use_cached_activations=True``. SAELens'
    ``CacheActivationsRunner`` does this for models it can open itself; here tokens that do
    not count are left out and the rest is shuffled, so a row of the cache is a bag of tokens, not a
    sequence.

    Args:
        model: a hooked model.
        tokens: ``[n_sequences, context_size]``.
        hook_name: a TransformerLens hook.
        folder: replaced if this function wrote it, once the new one is complete.
        mask: which tokens to keep; None for all but special ones.
        batch_size: sequences per forward pass.

    Returns:
        The folder: rows of ``{hook_name: float32 [context_size, d_in], token_ids}``.

    Raises:
        ValueError: if the model has no such hook, or the folder holds anything else.
        FloatingPointError: if an activation to keep is NaN or infinite.
    """
    folder, generator = Path(folder), torch.Generator().manual_seed(seed)
    _refuse_other_files(folder)
    mask = mask or TokenMask.from_model(model)
    context_size = tokens.shape[1]
    order = torch.randperm(len(tokens), generator=generator)
    shards: list[datasets.Dataset] = []
    with tqdm(total=tokens.numel(), desc=f"Caching {hook_name}", unit="tok") as bar:
        for group in tokens[order].split(SEQUENCES_PER_SHARD):
            kept_acts, kept_ids = [], []
            for batch in masked_batches(model, group, hook_name, mask, batch_size):
                kept_acts.append(batch.kept.cpu().float())
                kept_ids.append(batch.tokens[batch.keep])
                bar.update(batch.tokens.numel())
            acts, ids = torch.cat(kept_acts), torch.cat(kept_ids)
            n_rows = len(ids) // context_size
            shuffled = torch.randperm(len(ids), generator=generator)[: n_rows * context_size]
            shuffled = shuffled.view(n_rows, context_size)
            shards.append(_activation_rows(hook_name, acts[shuffled], ids[shuffled]))
    with replacing_folder(folder) as fresh:
        datasets.concatenate_datasets(shards).save_to_disk(str(fresh))
        (fresh / CACHE_MARK).write_text(json.dumps({"hook_name": hook_name, "seed": seed}))
    return folder


def rows_of_cache(folder: str | Path) -> int:
    """How many rows of activations a cache has; at least 1.

    Raises:
        ValueError: if it has none.
    """
    if not (n := datasets.load_from_disk(str(folder)).num_rows):
        raise ValueError(f"{folder} holds no full row of activations: give more text.")
    return int(n)


def check_cache(folder: str | Path, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Looks at cached activations before a run opens anything else.

    Raises:
        ValueError: if it is no cache, or of another hook, context size or width than the run's.
    """
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no cached activations: {error}") from error
    shapes = {name: getattr(kind, "shape", None) for name, kind in saved.features.items()}
    wanted = (cfg.context_size, cfg.sae.d_in)
    if shapes.get(cfg.hook_name) != wanted:
        raise ValueError(
            f"{folder} must hold rows of {cfg.hook_name} of {wanted[0]} tokens (context_size) by "
            f"{wanted[1]} (d_in); it has {shapes}."
        )


def _refuse_other_files(folder: Path) -> None:
    if folder.is_mount():
        raise ValueError(f"{folder} is a mount point and cannot be replaced: give a folder in it.")
    if not folder.exists():
        return
    names = [file.name for file in folder.iterdir()]
    others = [n for n in names if n not in CACHE_FILES and not n.endswith(".arrow")]
    if others or (names and CACHE_MARK not in names):
        raise ValueError(
            f"{folder} holds files that cache_activations did not write ("
            f"{', '.join(sorted(others or names)[:3])}): give another folder, or move them."
        )


def _activation_rows(hook_name: str, acts: torch.Tensor, ids: torch.Tensor) -> datasets.Dataset:
    features = datasets.Features(
        {
            hook_name: datasets.Array2D(shape=acts.shape[1:], dtype="float32"),
            "token_ids": datasets.List(datasets.Value("int32"), length=ids.shape[1]),
        }
    )
    rows = {hook_name: list(acts.numpy()), "token_ids": ids.numpy().astype(np.int32)}
    return datasets.Dataset.from_dict(rows, features=features)


@contextlib.contextmanager
def reading_several_times() -> Iterator[None]:
    """Inside, a run may read its data several times and bring its own model without a warning."""
    level = sae_lens.logger.level
    sae_lens.logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*training dataset.*")
            yield
    finally:
        sae_lens.logger.setLevel(level)
