"""Activations kept on disk, and what of a folder they replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset, load_from_disk
from helpers.training_runs import HOOK

from hsae_lens.models import TokenMask
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.tokenizing import token_dataset
from hsae_lens.training import activation_cache, activation_shards
from hsae_lens.training.activation_cache import cache_activations


def test_cached_activations_train(
    tmp_path: Path, tiny_gemma2: Any, tiny_tokens: torch.Tensor, make_runner: Callable[..., Any]
) -> None:
    folder = cache_activations(
        tiny_gemma2,
        tiny_tokens,
        HOOK,
        tmp_path / "acts",
        mask=TokenMask.from_model(tiny_gemma2, slice(2, None)),
    )
    runner = make_runner(use_cached_activations=True, cached_activations_path=str(folder))
    cached = runner.activations_store.cached_activation_dataset
    acts = hook_activations(tiny_gemma2, tiny_tokens[:8], HOOK)[:, 2:].reshape(-1, 32)
    rows = cached[:][HOOK].reshape(-1, 32)
    assert torch.cdist(acts[:50], rows).min(1).values.median() < 1e-4, "the same activations"
    assert not torch.isin(cached[:]["token_ids"], torch.tensor([0, 1, 2])).any()
    runner.run()
    with pytest.raises(ValueError, match="no hook"):
        cache_activations(tiny_gemma2, tiny_tokens, "blocks.9.hook_resid_post", tmp_path / "x")


def test_a_cache_replaces_only_what_it_wrote(
    tmp_path: Path, tiny_gemma2: Any, tiny_tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cache(folder: Path, n: int) -> int:
        cache_activations(tiny_gemma2, tiny_tokens[:n], HOOK, folder)
        return len(load_from_disk(str(folder)))

    folder = tmp_path / "acts"
    folder.mkdir()
    assert cache(folder, 8) < cache(folder, 16), "an empty folder, and an earlier cache"
    before = {file: file.read_bytes() for file in folder.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", lambda self, path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache(folder, 4)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder], "nothing half-written is left"

    (folder / "notes.txt").write_text("mine")
    others = tmp_path / "saelens"
    token_dataset(tiny_tokens).save_to_disk(others)
    for foreign, name in ((folder, "notes.txt"), (others, "data-00000-of-00001.arrow")):
        with pytest.raises(ValueError, match=f"did not write .*{name}.*give another folder"):
            cache(foreign, 4)
        assert (foreign / name).exists()


HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


class WatchedMask(TokenMask):
    """Counts the batches that it is asked about, and is interrupted at one of them."""

    asked = 0
    interrupted_at = -1

    def __call__(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] > 1:  # not where only the room on disk is reckoned
            object.__setattr__(self, "asked", self.asked + 1)
            if self.asked == self.interrupted_at:
                raise KeyboardInterrupt
        return super().__call__(tokens, x)


def test_several_hooks_in_one_pass_have_the_same_tokens_in_the_same_rows(
    tmp_path: Path, tiny_gemma2: Any, tiny_tokens: torch.Tensor, make_runner: Callable[..., Any]
) -> None:
    acts = {hook: hook_activations(tiny_gemma2, tiny_tokens[:24], hook) for hook in HOOKS}
    longest = acts[HOOK].norm(dim=-1).median().item()  # at the other hook they are shorter
    mask = TokenMask.from_model(tiny_gemma2, slice(1, None), max_norm=longest)
    keep = {hook: mask(tiny_tokens[:24], acts[hook]) for hook in HOOKS}
    n_kept = int((keep[HOOKS[0]] & keep[HOOK]).sum())
    assert 64 < n_kept < int(keep[HOOKS[0]].sum())

    folder = cache_activations(tiny_gemma2, tiny_tokens[:24], HOOKS, tmp_path / "a", mask=mask)
    assert folder == tmp_path / "a"
    rows = {hook: load_from_disk(str(folder / hook)).with_format("torch")[:] for hook in HOOKS}
    ids = rows[HOOKS[0]]["token_ids"]
    assert torch.equal(ids, rows[HOOK]["token_ids"])
    assert len(ids) == n_kept // 32
    both = torch.cat([acts[hook] for hook in HOOKS], -1).flatten(0, 1)
    found = torch.cat([rows[hook][hook] for hook in HOOKS], -1).flatten(0, 1)
    distance, which = torch.cdist(found.double(), both.double()).min(1)
    assert distance.max() < 1e-4, "one token's activations at both hooks"
    assert torch.equal(tiny_tokens[:24].flatten()[which], ids.flatten())

    make_runner(use_cached_activations=True, cached_activations_path=str(folder / HOOK)).run()


def test_an_interrupted_cache_goes_on_and_a_finished_one_is_kept(
    tmp_path: Path, tiny_gemma2: Any, tiny_tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_shards, "SEQUENCES_PER_SHARD", 8)

    def cache(folder: Path, interrupted_at: int = -1, seed: int = 0) -> int:
        mask = WatchedMask(TokenMask.from_model(tiny_gemma2).special)
        object.__setattr__(mask, "interrupted_at", interrupted_at)
        tokens = tiny_tokens[:40]
        cache_activations(tiny_gemma2, tokens, HOOKS, folder, mask=mask, batch_size=4, seed=seed)
        return mask.asked

    def content(folder: Path) -> list[bytes]:
        return [file.read_bytes() for file in sorted(folder.rglob("*.arrow"))]

    whole, folder = tmp_path / "whole", tmp_path / "acts"
    assert cache(whole) == 20, "ten batches, at two hooks"
    with pytest.raises(KeyboardInterrupt):
        cache(folder, interrupted_at=15)  # in the fourth shard of five
    assert not folder.exists()
    (cut_short,) = tmp_path.glob(f".unfinished-acts/acts/{HOOK}/data-00002*.arrow")
    cut_short.rename(cut_short.with_name(".data-00002-of-00005-99.arrow"))  # killed while writing
    assert cache(folder) == 20 - 2 * 4
    assert content(folder) == content(whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["acts", "whole"]

    assert cache(folder) == 0, "it is there already"
    with pytest.raises(KeyboardInterrupt):
        cache(folder, interrupted_at=15, seed=1)
    assert content(folder) == content(whole), "the former one stays until the new one is whole"
    assert cache(folder, seed=2) == 20, "what was left is of another seed"
    assert content(folder) != content(whole)


def test_too_little_room_is_said_before_anything_is_collected(
    tmp_path: Path, tiny_gemma2: Any, tiny_tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Room(NamedTuple):
        free: int

    mask = WatchedMask(TokenMask.from_model(tiny_gemma2).special)
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda folder: Room(100_000))
    with pytest.raises(OSError, match=r"need 0\.000337 GB, and .* has 0\.0001 GB left: make room"):
        cache_activations(tiny_gemma2, tiny_tokens[:40], HOOKS, tmp_path / "acts", mask=mask)
    assert mask.asked == 0
    assert not list(tmp_path.iterdir())
    needed = 40 * 32 * 2 * (4 * 32 + 8)  # BOS left out: a little less
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda folder: Room(needed))
    folder = cache_activations(tiny_gemma2, tiny_tokens[:40], HOOKS, tmp_path / "acts", mask=mask)
    assert sum(file.stat().st_size for file in folder.rglob("*.arrow")) < needed + 10_000
