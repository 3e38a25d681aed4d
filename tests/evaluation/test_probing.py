"""Sparse probing: its figures, what is kept from run to run, and for whom."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import disk_full_at, training_sae
from sae_lens import SAE

from hsae_lens import HierarchicalTopKSAE
from hsae_lens.evaluation.fingerprints import sae_fingerprint
from hsae_lens.evaluation.suites import feature_absorption
from hsae_lens.evaluation.suites.probing import above_guessing, sparse_probing
from hsae_lens.models.fingerprint import model_fingerprint

DATASET = "119_us_state_TX"  # the smallest


@pytest.fixture
def sae(tmp_path: Path) -> HierarchicalTopKSAE:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    return sae


def probe(sae: Any, model: Any, folder: Path, **overrides: Any) -> pd.DataFrame:
    pytest.importorskip("sae_probes")
    settings: dict[str, Any] = {"budgets": [8], "probe_sizes": (1, 4), "progress": False}
    return sparse_probing(sae, model, folder, [DATASET], **(settings | overrides))


@torch.no_grad()
def changed(model: Any, where: str) -> Any:
    """The same model, one number of one weight apart."""
    other = copy.deepcopy(model)
    (weight,) = (w for name, w in other.named_parameters() if where in name)
    weight[0, 0] += 1
    return other


def test_results_of_another_model_are_not_taken(
    sae: HierarchicalTopKSAE, tiny_gemma2: Any, tmp_path: Path
) -> None:
    first = probe(sae, tiny_gemma2, tmp_path)
    other = copy.deepcopy(tiny_gemma2)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + 0.3 * torch.randn_like(weight))
    assert not probe(sae, other, tmp_path).equals(first), "other weights"
    assert probe(sae, tiny_gemma2, tmp_path).equals(first)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    probe(sae, tiny_gemma2, tmp_path)
    probe(sae, other, tmp_path)
    again = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert again == stamps, "nothing is done twice"


def test_a_fingerprint_sees_weights_format_and_settings(
    sae: HierarchicalTopKSAE, tiny_gemma2: Any
) -> None:
    own = model_fingerprint(tiny_gemma2)
    assert model_fingerprint(copy.deepcopy(tiny_gemma2)) == own
    assert model_fingerprint(changed(tiny_gemma2, "layers.1._original_component.mlp._original_"
                             "component.down_proj")) != own  # fmt: skip
    assert model_fingerprint(copy.deepcopy(tiny_gemma2).to(torch.bfloat16)) != own
    gentler = copy.deepcopy(tiny_gemma2)
    gentler.original_model.config.sliding_window = 16
    assert model_fingerprint(gentler) != own

    mine = sae_fingerprint(sae)
    other = copy.deepcopy(sae)
    assert sae_fingerprint(other) == mine
    other.budget = 3
    other.cfg.metadata.dataset_path = "elsewhere"
    assert sae_fingerprint(other) == mine, "what changes no code at a given budget"
    for name, value in (("max_norm", 3.0), ("seqpos_slice", [4, None]), ("hook_name", "x")):
        other = copy.deepcopy(sae)
        other.cfg.metadata[name] = value
        assert sae_fingerprint(other) != mine, name
    other = copy.deepcopy(sae)
    other.cfg.apply_b_dec_to_input = not sae.cfg.apply_b_dec_to_input
    assert sae_fingerprint(other) != mine


def test_no_budgets_are_not_every_budget(sae: HierarchicalTopKSAE, tmp_path: Path) -> None:
    for measure in (sparse_probing, feature_absorption):
        with pytest.raises(ValueError, match="budgets is empty"):
            measure(sae, None, tmp_path, budgets=[])  # before anything else is asked for


def test_what_attached_saes_change_is_not_probed(
    sae: HierarchicalTopKSAE, tiny_gemma2: Any, tmp_path: Path
) -> None:
    tiny_gemma2.add_sae(sae)
    try:
        with pytest.raises(ValueError, match=r"attached to the model at .*reset_saes\(\) first"):
            probe(sae, tiny_gemma2, tmp_path / "probes")
    finally:
        tiny_gemma2.reset_saes()
    assert not (tmp_path / "probes").exists()


@pytest.mark.parametrize("size", [10_000, 500])
def test_a_file_cut_short_is_never_taken_for_a_result(
    sae: HierarchicalTopKSAE, tiny_gemma2: Any, tmp_path: Path, size: int
) -> None:
    if size == 500:  # the activations are there, the results do not fit
        probe(sae, tiny_gemma2, tmp_path, probe_sizes=(1,))
    with disk_full_at(size), pytest.raises((OSError, RuntimeError)):
        probe(sae, tiny_gemma2, tmp_path)
    assert len(probe(sae, tiny_gemma2, tmp_path)) == 2


def test_nothing_is_retained_where_the_model_guesses(
    sae: HierarchicalTopKSAE, tiny_gemma2: Any, tmp_path: Path
) -> None:
    assert not above_guessing(0.503, 200, 200)
    assert not above_guessing(0.55, 50, 50)
    assert above_guessing(0.55, 500, 500)
    assert not above_guessing(0.45, 500, 500)
    assert not above_guessing(0.9, 3, 0), "there is no AUC of one class"
    noise = copy.deepcopy(tiny_gemma2)
    noise.blocks[0].register_forward_hook(lambda *_: _noise_like(_[-1]))
    torch.manual_seed(0)
    table = probe(sae, noise, tmp_path)
    assert 0.4 < table["model_auc"].iloc[0] < 0.6
    assert table["retention"].isna().all()


def _noise_like(output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.randn_like(output[0]), *output[1:])
    return torch.randn_like(output)


def test_probing_at_every_budget(shipped_sae: Any, smollm: Any, tmp_path: Path) -> None:
    pytest.importorskip("sae_probes")
    settings: dict[str, Any] = {"budgets": [1, 64], "probe_sizes": (1, 8), "progress": False}
    sae = shipped_sae
    table = sparse_probing(sae, smollm, tmp_path, [DATASET], **settings)
    assert table[["k", "probe_size"]].to_numpy().tolist() == [[1, 1], [1, 8], [64, 1], [64, 8]]
    assert table["test_auc"].between(0, 1).all()
    assert 0.6 < table["model_auc"].iloc[0] <= 1
    expected = (table["test_auc"] - 0.5) / (table["model_auc"] - 0.5)
    assert table["retention"].tolist() == pytest.approx(expected.tolist())
    files = sorted(tmp_path.rglob("*.json"))
    stamps = [file.stat().st_mtime_ns for file in files]
    again = sparse_probing(sae, smollm, tmp_path, [DATASET], **settings)
    assert again.equals(table)
    assert stamps == [file.stat().st_mtime_ns for file in files], "nothing is done twice"
    assert sae.budget == sae.cfg.k
    fewer = sparse_probing(sae, smollm, tmp_path, [DATASET], **(settings | {"probe_sizes": (8,)}))
    assert fewer["test_auc"].tolist() == table["test_auc"][1::2].tolist()
    with pytest.raises(ValueError, match="no data set '96_spam'.* Did you mean '96_spam_is'"):
        sparse_probing(sae, smollm, tmp_path, ["96_spam"])
    other = SAE.from_dict(sae.cfg.to_dict())
    assert sae_fingerprint(other) != sae_fingerprint(sae)
