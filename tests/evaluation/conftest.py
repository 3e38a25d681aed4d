"""SAEs, and a finished evaluation, that several tests use."""

from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from helpers import training_sae
from helpers.command import hsae
from helpers.eval_runs import documents
from helpers.variants import VARIANTS, inference_variant
from sae_lens import SAE

from hsae_lens import HierarchicalTopKSAE, calibrate, load_pretrained
from hsae_lens.cli import main
from hsae_lens.models.hooks import hook_activations
from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import tokenize

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def sae(tmp_path: Path) -> HierarchicalTopKSAE:
    training_sae(d_in=32).save_inference_model(tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.cfg.metadata.hook_name = HOOK
    return sae


@pytest.fixture(params=VARIANTS)
def any_sae(request: pytest.FixtureRequest) -> HierarchicalTopKSAE:
    """Of every kind, for a hook of the tiny model whose activations it can take."""
    sae = inference_variant(request.param, HOOK, d_in=32)
    if sae.hook_z_reshaping_mode:
        sae.cfg.metadata.hook_name = "blocks.1.attn.hook_z"
    return sae


@pytest.fixture
def acts(tiny_gemma2: Any, tiny_tokens: torch.Tensor) -> torch.Tensor:
    return hook_activations(tiny_gemma2, tiny_tokens[:12], HOOK)[:, 1:].reshape(-1, 32).detach()


@pytest.fixture(scope="session")
def shipped_sae() -> HierarchicalTopKSAE:
    return load_pretrained("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")


@pytest.fixture(scope="session")
def smollm_tokens(smollm: Any) -> torch.Tensor:
    return tokenize(cpython_reference(), smollm.tokenizer, 128, progress=False)[:40]


@pytest.fixture(scope="session")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes") / "mine"
    training_sae(d_in=32, k=24).save_inference_model(folder)
    sae = SAE.load_from_disk(folder)
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    sae.cfg.metadata.context_size = 32
    sae.save_model(folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(
    sae_folder: Path, gemma2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished evaluation of a small SAE, its stock copy and the control."""
    base = tmp_path_factory.mktemp("eval")
    SAE.load_from_disk(sae_folder).at_k(24).save_model(base / "stock")
    text = documents(base / "text.jsonl", 400)
    command = ["eval", sae_folder, base / "stock", "--model", gemma2_folder, "--text", text]
    command += ["--tokens", "1024", "--bootstrap", "20", "--tasks", "4", "--out", base / "run"]
    assert main(list(map(str, command))) == 0
    return base / "run"


@pytest.fixture(scope="session")
def calibrated_folder(
    sae_folder: Path, tiny_gemma2: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same SAE with thresholds for mean budgets, from what the tiny model has at its hook."""
    sae = SAE.load_from_disk(sae_folder)
    tokens = tokenize(cpython_reference()[:20], tiny_gemma2.tokenizer, 32, progress=False)[:40]
    calibrate(sae, hook_activations(tiny_gemma2, tokens, HOOK)[:, 1:].flatten(0, 1), progress=False)
    folder = tmp_path_factory.mktemp("saes") / "calibrated"
    sae.save_model(folder)
    return folder


@pytest.fixture(scope="session")
def mean_run(
    calibrated_folder: Path, gemma2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CompletedProcess[str]]:
    """An evaluation with mean budgets and error targets, a stock SAE beside; and what it said."""
    base = tmp_path_factory.mktemp("mean")
    SAE.load_from_disk(calibrated_folder).at_k(24).save_model(base / "stock")
    text = documents(base / "text.jsonl", 400)
    command = ["eval", calibrated_folder, base / "stock", "--model", gemma2_folder, "--text", text]
    command += ["--mean-budgets", "2,8.5,16", "--error-targets", "0.3,0.9", "--tokens", 2048]
    return base / "run", hsae(*command, "--bootstrap", 20, "--tasks", 4, "--out", base / "run")


@pytest.fixture
def finished(run_folder: Path, tmp_path: Path) -> Path:
    """An evaluation to which a judge's answers and tables were added."""
    folder = tmp_path / "finished"
    shutil.copytree(run_folder, folder)
    for name in ("judge.jsonl", "interpretation.csv", "probing.csv"):
        (folder / name).write_text("paid for")
    return folder
