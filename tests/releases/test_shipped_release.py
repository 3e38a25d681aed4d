"""The SAE in the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.processes import OFFLINE, python
from helpers.releases import SHIPPED
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from hsae_lens import MeanBudget, load_pretrained
from hsae_lens.evaluation import evaluate_budgets
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import tokenize
from hsae_lens.releases.directory import RELEASES
from hsae_lens.releases.model_card import write_card

ROOT = Path(__file__).parents[2]


IDS = list(RELEASES[SHIPPED[0]].saes)  # of all depths


@pytest.mark.parametrize("sae_id", IDS)
def test_its_card_is_what_it_says_of_itself(sae_id: str) -> None:
    folder = ROOT / "hsae_lens" / "releases" / "pretrained" / SHIPPED[0] / sae_id
    sae = SAE.load_from_disk(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == write_card(sae, SHIPPED[0], sae_id)


def test_every_shipped_folder_is_in_the_table_and_loads_with_its_checksum() -> None:
    folders = (ROOT / "hsae_lens" / "releases" / "pretrained" / SHIPPED[0]).iterdir()
    assert sorted(folder.name for folder in folders) == sorted(IDS)
    for sae_id in IDS:
        sae = load_pretrained(SHIPPED[0], sae_id, k=8)
        assert (sae.cfg.metadata.hook_name, sae.budget) == (sae_id, 8)


def test_the_shipped_sae_loads_through_saelens_without_a_network() -> None:
    code = f"""
import hsae_lens
from sae_lens import SAE
sae, cfg, sparsity = SAE.from_pretrained_with_cfg_and_sparsity{SHIPPED}
assert type(sae) is hsae_lens.HierarchicalTopKSAE, type(sae)
assert sae.W_enc.dtype.is_floating_point and str(sae.W_enc.dtype) == "torch.float32"
assert cfg["d_sae"] == sae.cfg.d_sae >= 4096 and sae.cfg.k >= 64
assert sae.cfg.metadata.hook_name == "{SHIPPED[1]}"
assert type(SAE.from_pretrained(*{SHIPPED})) is type(sae)
"""
    done = python(code, **OFFLINE)
    assert done.returncode == 0, done.stderr


def test_saelens_directory_and_config_getters_know_it() -> None:
    lookup = get_pretrained_saes_directory()[SHIPPED[0]]
    assert SHIPPED[1] in lookup.saes_map
    assert lookup.model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    cfg = load_sae_config_from_huggingface(*SHIPPED)
    assert cfg["architecture"] == "hierarchical_topk"
    assert "hsae_lens" not in cfg, "what only our loader needs stays out of the config"


def test_a_budget_is_the_number_of_active_latents() -> None:
    x = 10 * torch.randn(7, 576, generator=torch.Generator().manual_seed(0))
    sae = load_pretrained(*SHIPPED, k=8)
    assert ((sae.encode(x) > 0).sum(-1) == 8).all()
    half = load_pretrained(*SHIPPED, dtype=torch.bfloat16)
    assert half.W_dec.dtype == torch.bfloat16
    assert half.budget == half.cfg.k
    with pytest.raises(ValueError, match=r"budget 129 is outside 1..128"):
        load_pretrained(*SHIPPED, k=129)


def test_folding_the_shipped_decoder_is_harmless() -> None:
    sae = SAE.from_pretrained(*SHIPPED, fold_W_dec_norm=True)
    assert torch.equal(sae.W_dec, SAE.from_pretrained(*SHIPPED).W_dec)


@pytest.mark.parametrize("sae_id", IDS)
def test_the_card_tells_the_truth(smollm: Any, sae_id: str) -> None:
    """Points of the saved frontier, measured again on the real model and the same text."""
    sae = load_pretrained(SHIPPED[0], sae_id)
    saved = pd.DataFrame(sae.cfg.metadata.frontier)
    saved = saved[saved["text"].str.contains("CPython") & (saved["k"] == 32)]
    assert list(saved["rule"]) == ["fixed", "mean"]
    tokens = tokenize(cpython_reference(), smollm.tokenizer, 128, progress=False)[:64]
    budgets = [32, MeanBudget(32)]
    table = evaluate_budgets(sae, smollm, tokens, budgets, cross_entropy=False, progress=False)
    for column, tolerance in (("explained_variance", 0.01), ("l0", 0.5)):
        assert table[column].to_numpy() == pytest.approx(saved[column].to_numpy(), abs=tolerance)


def test_mean_budgets_are_worth_it() -> None:
    """On both texts of the card, none of which set a threshold."""
    saved = pd.DataFrame(load_pretrained(*SHIPPED).cfg.metadata.frontier)
    assert saved["text"].nunique() == 2
    for _, here in saved.groupby("text"):
        fixed, mean = (here[here["rule"] == rule] for rule in ("fixed", "mean"))
        for row in mean[mean["k"].isin([8, 16, 32])].to_dict("records"):
            assert row["l0"] == pytest.approx(row["k"], rel=0.15)
            for of in ("explained_variance", "ce_score"):
                assert row[of] > np.interp(np.log(row["l0"]), np.log(fixed["l0"]), fixed[of])


def test_the_wheel_holds_everything_and_is_small(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building leaves files behind
    shutil.copytree(ROOT / "hsae_lens", source / "hsae_lens")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 2e6 + 11e6 * len(IDS)
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("shipped_sae")]
        archive.extractall(tmp_path / "installed")
    code = f"""
import hsae_lens
assert hsae_lens.__file__.startswith({str(tmp_path)!r}), hsae_lens.__file__
for sae_id in {IDS}:
    hsae_lens.load_pretrained("{SHIPPED[0]}", sae_id, k=8)
"""
    done = python(code, PYTHONPATH=str(tmp_path / "installed"), **OFFLINE)
    assert done.returncode == 0, done.stderr
