"""Hooks' activations kept on disk, where SAELens' runner reads them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import sae_lens
import torch
from sae_lens import LanguageModelSAERunnerConfig
from tqdm.auto import tqdm

from hsae_lens._util.atomic_files import resuming_folder
from hsae_lens.models.fingerprint import model_fingerprint
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import activations_at
from hsae_lens.models.token_mask import TokenMask
from hsae_lens.training.activation_shards import (
    Shard,
    complete_data_set,
    make_shards,
    sequences_together,
    write_shard,
)

logger = logging.getLogger(__name__)

CACHE_MARK = "hsae_activations.json"  # in a data set that cache_activations wrote; says of what

CACHE_FILES = (CACHE_MARK, "dataset_info.json", "state.json")  # and *.arrow

BYTES_OF_TOKEN = 8  # its id, and where its activation begins


@torch.no_grad()
def cache_activations(
    model: HookedModel,
    tokens: torch.Tensor,
    hook_name: str | Sequence[str],
    folder: str | Path,
    *,
    mask: TokenMask | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Path:
    """Runs the model once and keeps hooks' activations where SAELens' runner reads them.

    For training several SAEs, or several epochs, on the same activations: pass the folder as
    ``cached_activations_path`` with ``use_cached_activations=True``. SAELens'
    ``CacheActivationsRunner`` does this for models it can open itself; here tokens that do
    not count are left out and the rest is shuffled, so a row of the cache is a bag of tokens, not a
    sequence. Sequences are taken in random order, and the tokens of up to 1024 of them are shuffled
    at a time.

    However many tokens there are, it takes about a gigabyte of memory, and on disk 4 bytes for
    each number of a token's activation. Stopped or killed, the same call goes on where it was;
    called again when it is done, it only looks.

    Args:
        model: a hooked model.
        tokens: ``[n_sequences, context_size]``.
        hook_name: a TransformerLens hook, or several: one pass over the model serves all, and each
            has a cache in a folder of its name in ``folder``, with the same tokens in the same
            rows. Then only tokens that count at every hook are kept.
        folder: replaced if this function wrote it, once the new one is complete.
        mask: which tokens to keep; None for all but special ones.
        batch_size: sequences per forward pass.

    Returns:
        The folder: rows of ``{hook_name: float32 [context_size, d_in], token_ids}``, or with
        several hooks folders of these.

    Raises:
        ValueError: if the model has no such hook, or the folder holds anything else.
        FloatingPointError: if an activation to keep is NaN or infinite.
        OSError: if the disk has too little room, before anything is collected.
    """
    folder, mask = Path(folder), mask or TokenMask.from_model(model)
    hooks = [hook_name] if isinstance(hook_name, str) else list(dict.fromkeys(hook_name))
    within = [""] if isinstance(hook_name, str) else hooks
    _refuse_other_files(folder, within)
    widths = _widths(model, hooks)
    together = sequences_together(tokens.shape[1], widths)
    made_of = _made_of(model, tokens, hooks, mask, [seed, together])
    if all(_mark(folder / name) == made_of for name in within):
        logger.info("%s holds these activations already.", folder)
        return folder
    with resuming_folder(folder, made_of) as fresh:
        places = {hook: fresh / name for hook, name in zip(hooks, within, strict=True)}
        shards = make_shards(len(tokens), together, places, seed)
        _check_room(fresh, tokens, shards, mask, widths)
        _collect(model, tokens, shards, mask, batch_size)
        for place in places.values():
            complete_data_set(place)
            (place / CACHE_MARK).write_text(made_of, encoding="utf-8")
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


def _refuse_other_files(folder: Path, within: Sequence[str]) -> None:
    """Raises ValueError where replacing ``folder`` would lose what is no cache of ours.

    Args:
        within: the folders in it that are to be caches; "" for itself.
    """
    if folder.is_mount():
        raise ValueError(f"{folder} is a mount point and cannot be replaced: give a folder in it.")
    if not folder.exists():
        return
    names = [str(f.relative_to(folder)) for f in folder.rglob("*") if not f.is_dir()]
    ours = {f"{of}/{name}".lstrip("/") for of in within for name in CACHE_FILES}
    others = [n for n in names if n not in ours and not n.endswith(".arrow")]
    unmarked = [n for n in names if not (folder / n).with_name(CACHE_MARK).exists()]
    if foreign := others + unmarked:
        raise ValueError(
            f"{folder} holds files that cache_activations did not write ("
            f"{', '.join(sorted(foreign)[:3])}): give another folder, or move them."
        )


def _widths(model: HookedModel, hook_names: Sequence[str]) -> dict[str, int]:
    """Numbers in an activation at each hook, heads joined; runs two tokens."""
    acts = activations_at(model, torch.zeros(1, 2, dtype=torch.int64), hook_names)
    return {name: acts[name].flatten(2).shape[2] for name in hook_names}


def _made_of(
    model: HookedModel,
    tokens: torch.Tensor,
    hooks: Sequence[str],
    mask: TokenMask,
    order: Sequence[int],
) -> str:
    """What decides a cache's activations and their order, in JSON."""
    facts = {
        "hooks": hooks,
        "model": model_fingerprint(model),
        "tokens": hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest(),
        "shape": list(tokens.shape),
        "special": sorted(mask.special.tolist()),
        "positions": [mask.positions.start, mask.positions.stop, mask.positions.step],
        "max_norm": str(mask.max_norm),
        "order": order,
    }
    return json.dumps(facts)


def _mark(folder: Path) -> str | None:
    """What a cache says it is made of; None where there is none."""
    file = folder / CACHE_MARK
    return file.read_text(encoding="utf-8") if file.exists() else None


def _check_room(
    folder: Path,
    tokens: torch.Tensor,
    shards: Sequence[Shard],
    mask: TokenMask,
    widths: Mapping[str, int],
) -> None:
    """Raises OSError if the disk has no room for the shards that are not there."""
    missing = [tokens[shard.sequences] for shard in shards if not shard.is_there()]
    n_kept = sum(
        int(mask(some, torch.zeros(*some.shape, 1, device=some.device)).sum()) for some in missing
    )
    needed = n_kept * sum(4 * width + BYTES_OF_TOKEN for width in widths.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"Activations of {n_kept:,} tokens at {', '.join(widths)} need {needed / 1e9:,.4g} GB, "
            f"and {folder.parent.parent} has {free / 1e9:,.4g} GB left: make room, or give fewer "
            "tokens or a folder on another disk."
        )


def _collect(
    model: HookedModel,
    tokens: torch.Tensor,
    shards: Sequence[Shard],
    mask: TokenMask,
    batch_size: int,
) -> None:
    """Writes the shards that are not there."""
    hooks = list(shards[0].files)
    context_size = tokens.shape[1]
    with tqdm(total=tokens.numel(), desc=f"Caching {', '.join(hooks)}", unit="tok") as bar:
        for shard in shards:
            if not shard.is_there():
                write_shard(model, tokens[shard.sequences], shard, mask, batch_size)
            bar.update(len(shard.sequences) * context_size)


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
