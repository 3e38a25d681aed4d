"""Activations on disk in shards, each written as soon as it is made: only one is in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch

from hsae_lens._util.atomic_files import replacing_file, write_json
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.token_mask import TokenMask, masked_batches_at

SEQUENCES_PER_SHARD = 1024  # shuffled together, unless they take more than

SHARD_BYTES = 512 << 20  # of activations at all hooks; making a shard takes up to twice as much

ROWS_AT_ONCE = 64  # written


def sequences_together(context_size: int, widths: Mapping[str, int]) -> int:
    """Sequences in a shard, by the numbers in an activation at each hook."""
    one = 4 * context_size * sum(widths.values())
    return max(1, min(SEQUENCES_PER_SHARD, SHARD_BYTES // one))


@dataclass(frozen=True)
class Shard:
    """Sequences whose tokens are shuffled together, by number, and their file at each hook."""

    sequences: torch.Tensor
    seed: int
    files: dict[str, Path]

    def is_there(self) -> bool:
        return all(file.exists() for file in self.files.values())


def make_shards(
    n_sequences: int, together: int, places: Mapping[str, Path], seed: int
) -> list[Shard]:
    """All sequences in random order, the same for the same seed, whichever are there already.

    Args:
        together: sequences in a shard, but for the last.
        places: the folder for each hook.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randperm(n_sequences, generator=generator).split(together)
    seeds = torch.randint(2**62, (len(groups),), generator=generator).tolist()
    names = [f"data-{n:05d}-of-{len(groups):05d}.arrow" for n in range(len(groups))]
    return [
        Shard(group, own, {hook: place / name for hook, place in places.items()})
        for group, own, name in zip(groups, seeds, names, strict=True)
    ]


def write_shard(
    model: HookedModel, tokens: torch.Tensor, shard: Shard, mask: TokenMask, batch_size: int
) -> None:
    """Runs the model on a shard's sequences ``[n, context]`` and writes those tokens that count,
    shuffled, in rows of ``context``; the rest of the last row is dropped.
    """
    hooks = list(shard.files)
    kept: dict[str, list[torch.Tensor]] = {hook: [] for hook in hooks}
    kept_ids = []
    for found in masked_batches_at(model, tokens, hooks, mask, batch_size):
        for hook, batch in found.items():
            kept[hook].append(batch.kept.cpu())
        kept_ids.append(batch.tokens[batch.keep])
    ids, context_size = torch.cat(kept_ids), tokens.shape[1]
    n_rows = len(ids) // context_size
    generator = torch.Generator().manual_seed(shard.seed)
    shuffled = torch.randperm(len(ids), generator=generator)[: n_rows * context_size]
    shuffled = shuffled.view(n_rows, context_size)
    for hook, file in shard.files.items():
        acts = torch.cat(kept.pop(hook))
        with replacing_file(file) as fresh:
            _write_rows(fresh, hook, acts, ids, shuffled)


def _write_rows(
    file: Path, hook_name: str, acts: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor
) -> None:
    """Tokens' activations ``[n, d_in]`` and ids ``[n]`` as an Arrow file.

    Args:
        rows: ``[n_rows, context]``, which tokens are in each.
    """
    features = datasets.Features(
        {
            hook_name: datasets.Array2D(shape=(rows.shape[1], acts.shape[1]), dtype="float32"),
            "token_ids": datasets.List(datasets.Value("int32"), length=rows.shape[1]),
        }
    )
    with pa.ipc.new_stream(str(file), features.arrow_schema) as stream:
        for some in rows.split(ROWS_AT_ONCE):
            columns = {
                hook_name: list(acts[some].float().numpy()),
                "token_ids": ids[some].numpy().astype(np.int32),
            }
            stream.write_table(datasets.Dataset.from_dict(columns, features=features).data.table)


def complete_data_set(folder: Path) -> None:
    """Writes the files that make a data set of a folder's shards, as ``save_to_disk`` would.

    That would copy all of them.
    """
    for cut_short in folder.glob(".data-*.arrow"):  # of a process that was killed
        cut_short.unlink()
    files = sorted(folder.glob("data-*.arrow"))
    with tempfile.TemporaryDirectory() as empty:
        datasets.Dataset.from_file(str(files[0])).select([]).save_to_disk(empty)
        state = json.loads(Path(empty, "state.json").read_text(encoding="utf-8"))
        info = Path(empty, "dataset_info.json").read_bytes()
    state["_data_files"] = [{"filename": file.name} for file in files]
    state["_fingerprint"] = None  # found by datasets, from these files
    write_json(state, folder / "state.json")
    (folder / "dataset_info.json").write_bytes(info)
