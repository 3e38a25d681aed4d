"""SAEs opened by name or from a folder, and the listing of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import training_sae
from helpers.releases import SHIPPED, entry
from sae_lens import SAE

from hsae_lens import load_pretrained, register_release
from hsae_lens.releases.listing import list_releases
from hsae_lens.releases.opening import open_hierarchical, open_sae


def test_the_catalogue_shows_each_sae_with_its_frontier(folder: Path) -> None:
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    register_release("far", model="tiny", repo_id="me/far", saes=[{"id": "a", "path": "a"}])
    register_release("gone", model="tiny", folder=folder, saes=[{"id": "b", "path": "b"}])
    shown = list_releases()
    for words in (*SHIPPED, "576 → 4608 latents", "explained variance", "recovered cross-entropy",
                  "24 → 96 latents, hierarchical_topk, k 1..8", "not downloaded yet",
                  "its files are missing"):  # fmt: skip
        assert words in shown


def test_swapped_damaged_and_pickled_weights_are_refused(folder: Path) -> None:
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    free = [{"id": "blocks.1", "path": "layer-1"}]  # no checksum
    register_release("free", model="tiny", folder=folder, saes=free)
    weights = folder / "layer-1" / "sae_weights.safetensors"
    original = weights.read_bytes()

    training_sae(k=7).save_inference_model(folder / "other")
    shutil.copy(folder / "other" / "sae_weights.safetensors", weights)
    swapped = bytearray(original)
    swapped[-1] ^= 1
    weights.write_bytes(swapped)
    with pytest.raises(ValueError, match="is not the file of the release: its SHA-256 is"):
        SAE.from_pretrained("mine", "blocks.1")
    weights.write_bytes(original[:500])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_pretrained("free", "blocks.1")
    weights.rename(weights.with_name("sae_weights.pt"))
    with pytest.raises(ValueError, match=r"holds sae_weights.pt. Only safetensors are read"):
        load_pretrained("free", "blocks.1")
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="No saved SAE at"):
        load_pretrained("free", "blocks.1")


def test_other_architectures_are_for_saelens(folder: Path) -> None:
    SAE.load_from_disk(folder / "layer-1").at_k(2).save_model(folder / "stock")
    saes = [{"id": "stock", "path": "stock"}]
    register_release("mine", model="tiny", folder=folder, saes=saes)
    assert SAE.from_pretrained("mine", "stock").cfg.architecture() == "topk"
    with pytest.raises(ValueError, match="is a 'topk' SAE, which has no order"):
        load_pretrained("mine", "stock")


def test_a_training_checkpoint_is_made_ready_or_refused(tmp_path: Path) -> None:
    trained = training_sae(dtype="float64")
    trained.save_model(tmp_path / "checkpoint")
    sae = open_sae(tmp_path / "checkpoint")
    x = torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(96, dtype=torch.float64))
    torch.testing.assert_close(sae.encode(x), trained.encode(x))
    torch.testing.assert_close(sae(x), trained(x))
    training_sae(normalize_activations="expected_average_only_in").save_model(tmp_path / "early")
    with pytest.raises(ValueError, match="not folded into the weights yet"):
        open_sae(tmp_path / "early")
    training_sae().save_inference_model(tmp_path / "ready")
    open_sae(tmp_path / "ready").at_k(2).save_model(tmp_path / "stock")
    assert open_sae(tmp_path / "stock").cfg.architecture() == "topk"
    with pytest.raises(ValueError, match="is a 'topk' SAE, not a hierarchical one"):
        open_hierarchical(tmp_path / "stock")
    with pytest.raises(FileNotFoundError, match=f"Did you mean '{SHIPPED[0]}/{SHIPPED[1]}'"):
        open_sae("smollm2-135m-res-htopk2/blocks.15.hook_resid_post")
