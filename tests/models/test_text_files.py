"""Local text in every format, and text that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from hsae_lens.models.text_files import PIECE, documents_of, hold_out, open_text


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
