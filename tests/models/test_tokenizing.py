"""Text in, token sequences out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hsae_lens.models.text_files import cpython_reference
from hsae_lens.models.tokenizing import sample_tokens, sequences_of, tokenize


def test_tokens_are_saelens_sequences(tiny_gemma2: Any) -> None:
    documents = cpython_reference()[:4]
    tokens = tokenize(documents, tiny_gemma2.tokenizer, 16, progress=False)
    assert (tokens[:, 0] == tiny_gemma2.tokenizer.bos_token_id).all()
    first = tiny_gemma2.tokenizer(documents[0], add_special_tokens=False)["input_ids"]
    assert tokens[0, 1:].tolist() == first[:15]
    with pytest.raises(ValueError, match="shorter than one sequence of 4096"):
        tokenize(["short"], tiny_gemma2.tokenizer, 4096, progress=False)


@pytest.mark.parametrize("lengths", [(3, 3, 3), (7, 3, 1), (2, 5, 4), (3, 11, 6), (1, 1, 1, 9)])
def test_each_sequence_knows_its_document(lengths: tuple[int, ...], tiny_gemma2: Any) -> None:
    """Also after a document that ends with its sequence: the next one begins with BOS anyway."""
    tokenizer = tiny_gemma2.tokenizer
    documents = ["abcdefg"[n] * length for n, length in enumerate(lengths)]
    words = [tokenizer(d, add_special_tokens=False)["input_ids"] for d in documents]
    rows = Dataset.from_dict({"text": documents})
    tokens, of = sequences_of(rows, tokenizer, 4, progress=False)
    assert torch.equal(tokens, tokenize(documents, tokenizer, 4, progress=False))
    ids = [set(word) for word in words]
    for row, document in zip(tokens.tolist(), of.tolist(), strict=True):
        first = next(token for token in row if token != tokenizer.bos_token_id)
        assert first in ids[document]


def test_a_text_file_is_one_document_to_the_bootstrap(tmp_path: Path, tiny_gemma2: Any) -> None:
    paragraphs = cpython_reference()[:12]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    rows = "\n".join(json.dumps({"text": p}) for p in paragraphs)
    (tmp_path / "b.jsonl").write_text(rows)
    found = {}
    for name in ("a.txt", "b.jsonl"):
        _, documents = sample_tokens(tmp_path / name, tiny_gemma2.tokenizer, 16, 8192)
        found[name] = len(documents.unique())
    assert found == {"a.txt": 1, "b.jsonl": 12}


def test_a_data_set_is_its_sequences_and_documents(tiny_gemma2: Any) -> None:
    documents, tokenizer = cpython_reference()[:4], tiny_gemma2.tokenizer
    dataset = Dataset.from_dict({"text": [*documents, ""], "id": range(5)})
    tokens, of = sequences_of(dataset, tokenizer, 16, progress=False)
    assert torch.equal(tokens, tokenize(documents, tokenizer, 16, progress=False))
    assert of.unique().tolist() == [0, 1, 2, 3]
    assert sequences_of(dataset, tokenizer, progress=False)[0].shape[1] == 128
    for name in ("tokens", "input_ids"):
        rows = Dataset.from_dict({"text": ["x"] * 3, name: [list(range(n)) for n in (9, 8, 12)]})
        cut, of = sequences_of(rows, tokenizer, 6, progress=False)
        assert cut.tolist() == [list(range(6))] * 3
        assert of.tolist() == [0, 1, 2]
        assert sequences_of(rows, tokenizer, progress=False)[0].shape == (3, 8)
        with pytest.raises(ValueError, match=f"shortest row of '{name}' has 8 tokens.* of 9"):
            sequences_of(rows, tokenizer, 9, progress=False)
    with pytest.raises(ValueError, match="column 'text', .* has only body, id"):
        sequences_of(dataset.rename_column("text", "body"), tokenizer)
    with pytest.raises(ValueError, match="shorter than one sequence of 128"):
        sequences_of(Dataset.from_dict({"text": ["short"]}), tokenizer, progress=False)
