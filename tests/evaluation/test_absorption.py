"""First letters and what stands in for them, by sae-bench on the real model."""

from __future__ import annotations

import copy
import random
import string
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import training_sae
from sae_lens import SAE

from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKSAEConfig, load_pretrained
from hsae_lens.evaluation.suites import absorption as module
from hsae_lens.evaluation.suites.absorption import feature_absorption
from hsae_lens.models.opening import open_model

pytest.importorskip("sae_bench")
SHIPPED = ("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")
LETTERS = string.ascii_lowercase
FEW: dict[str, Any] = {"words": 10, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("absorption")  # the probe on the model is trained once


def test_a_model_that_cannot_spell_gets_no_figure(
    smollm: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sae = load_pretrained(*SHIPPED)
    state = random.getstate(), torch.get_rng_state()
    table = feature_absorption(sae, smollm, folder, [8], **FEW)
    assert state[0] == random.getstate()
    assert torch.equal(state[1], torch.get_rng_state())
    row = table.iloc[0]
    assert row["letters"] < 20  # ten words a letter teach the probe too little
    assert 1 / 26 < row["probe_accuracy"] < 0.8
    assert pd.isna(row["absorption"])
    assert row["words"] == 0
    assert sae.budget == sae.cfg.k
    assert capfd.readouterr() == ("", "")


@torch.no_grad()
def probe_as_sae(folder: Path) -> HierarchicalTopKSAE:
    """Latents 0–25 are the model's own letter probes, the others never fire."""
    (file,) = folder.rglob("probe.pth")
    probe = torch.load(file, weights_only=False)
    metadata = load_pretrained(*SHIPPED).cfg.metadata
    sae = HierarchicalTopKSAE(
        HierarchicalTopKSAEConfig(
            d_in=576, d_sae=40, k=30, apply_b_dec_to_input=False, metadata=metadata
        )
    )
    sae.W_enc.zero_()
    sae.W_enc[:, :26], sae.b_enc[:26], sae.W_dec[:26] = probe.weights.T, probe.biases, probe.weights
    sae.W_dec /= sae.W_dec.norm(dim=-1, keepdim=True)
    return sae


def test_figures_are_sae_bench_s_over_letters_that_the_model_spells(
    smollm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST_LETTERS", 1)
    sae = probe_as_sae(folder)
    table = feature_absorption(sae, smollm, folder, [30], **FEW)
    shipped = feature_absorption(load_pretrained(*SHIPPED), smollm, folder, [8], **FEW)
    row = table.iloc[0]
    assert row["letter_f1"] > shipped["letter_f1"][0], "letters have latents of their own"
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    assert feature_absorption(sae, smollm, folder, [30], **FEW).equals(table)
    assert files == {f: f.stat().st_mtime_ns for f in folder.rglob("*.parquet")}, "done once"

    (probes,) = folder.rglob("k-30/*_metrics.parquet")
    f1 = pd.read_parquet(probes).set_index("letter")["f1_probe"]
    (words,) = folder.rglob("absorption/k-30/*.parquet")
    found = pd.read_parquet(words)
    by_hand: list[float] = []
    for letter, rows in found.groupby("letter"):
        if f1[letter] > 0.6:
            total = rows["num_probe_true_positives"].iloc[0]
            by_hand.append(rows["absorption_fraction"].sum() / total)
    assert row["letters"] == len(by_hand) == (f1 > 0.6).sum() < f1.size
    assert row["absorption"] == pytest.approx(sum(by_hand) / len(by_hand))
    assert row["words"] < len(found)
    assert row["probe_f1"] == pytest.approx(f1.mean())


@pytest.fixture(scope="module")
def speller(gemma2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Gemma-2 with ten made-up words of one token for each letter."""
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    folder = tmp_path_factory.mktemp("speller")
    rng = random.Random(0)
    words = [
        letter + "".join(rng.sample("aeiou", 4)) + "x" for letter in LETTERS for _ in range(10)
    ]
    texts = [" " + module.TEMPLATE.format(word=word) for word in words]
    tokenizer = AutoTokenizer.from_pretrained(gemma2_folder).train_new_from_iterator(texts, 2000)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Gemma2Config.from_pretrained(gemma2_folder, vocab_size=len(tokenizer))
    Gemma2ForCausalLM(config).save_pretrained(folder)
    return open_model(folder, dtype="float32")


@pytest.fixture
def tiny_sae(tmp_path: Path) -> SAE[Any]:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    return sae


def test_results_of_another_model_are_not_taken(
    speller: Any, tiny_sae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_PROBE", 1)  # sparse probes of ten take seconds each
    first = feature_absorption(tiny_sae, speller, tmp_path, [2], **FEW)
    other = copy.deepcopy(speller)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + torch.randn_like(weight))
    second = feature_absorption(tiny_sae, other, tmp_path, [2], **FEW)
    assert second["probe_f1"][0] != first["probe_f1"][0]
    assert len(list(tmp_path.rglob("probe.pth"))) == 2
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    assert feature_absorption(tiny_sae, speller, tmp_path, [2], **FEW).equals(first)
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}


def test_what_cannot_be_measured_is_said(
    smollm: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_sae().save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.1.hook_mlp_out"
    with pytest.raises(ValueError, match="after a block, .*this SAE is of blocks.1.hook_mlp_out"):
        feature_absorption(sae, smollm, folder)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    with pytest.raises(ValueError, match="9 words for a letter are too few"):
        feature_absorption(sae, smollm, folder, words=9)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="--no-deps sae-bench"):
        feature_absorption(sae, smollm, folder)
