"""Activations kept on disk, and what of a folder they replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from helpers.training_runs import HOOK

from hsae_lens.models import TokenMask
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.tokenizing import token_dataset
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
