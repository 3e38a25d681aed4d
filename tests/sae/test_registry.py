"""The architecture among SAELens' own, and SAEs where this package is not imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

import hsae_lens
from hsae_lens import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)


def test_an_exported_sae_needs_no_plugin(sae: HierarchicalTopKSAE, x: Any, tmp_path: Path) -> None:
    sae.at_k(3).save_model(tmp_path / "stock")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; from sae_lens import SAE\n"
        f"sae = SAE.load_from_disk({str(tmp_path / 'stock')!r})\n"
        f"torch.save(sae(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'y.pt')!r})\n"
        "assert 'hsae_lens' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    with sae.using_budget(3):
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), sae(x))


def test_registration_is_idempotent() -> None:
    hsae_lens.register()
    for module in (hsae_lens.sae.inference_sae, hsae_lens.sae.training_sae, hsae_lens.sae.registry):
        importlib.reload(module)
    reloaded = importlib.reload(hsae_lens)
    try:
        assert SAE_CLASS_REGISTRY["hierarchical_topk"][0] is reloaded.HierarchicalTopKSAE
        training = SAE_TRAINING_CLASS_REGISTRY["hierarchical_topk"][0]
        assert training is reloaded.HierarchicalTopKTrainingSAE
    finally:  # the other tests hold the first classes
        SAE_CLASS_REGISTRY["hierarchical_topk"] = (HierarchicalTopKSAE, HierarchicalTopKSAEConfig)
        SAE_TRAINING_CLASS_REGISTRY["hierarchical_topk"] = (
            HierarchicalTopKTrainingSAE,
            HierarchicalTopKTrainingSAEConfig,
        )


def test_another_packages_class_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAE_CLASS_REGISTRY, "hierarchical_topk", SAE_CLASS_REGISTRY["topk"])
    with pytest.raises(ValueError, match="already registered"):
        hsae_lens.register()
    assert SAE_CLASS_REGISTRY["hierarchical_topk"] is SAE_CLASS_REGISTRY["topk"]


def test_loading_without_the_import_fails_as_documented(sae: Any, tmp_path: Path) -> None:
    sae.save_model(tmp_path / "sae")
    code = f"from sae_lens import SAE; SAE.load_from_disk({str(tmp_path / 'sae')!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KeyError: 'hierarchical_topk'" in run.stderr
