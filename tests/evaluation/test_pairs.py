"""Pairs of prompts: from files, in halves, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hsae_lens.evaluation.tasks.evaluate import check_able
from hsae_lens.evaluation.tasks.pairs import Pair, TokenizedTask, read_pairs, tokenize_pairs


def test_halves_share_no_prompt() -> None:
    rows = torch.arange(40).reshape(20, 2)
    clean, corrupt = torch.cat([rows[:10], rows[10:]]), torch.cat([rows[10:], rows[:10]])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    task = TokenizedTask("swaps", clean[order], corrupt[order], *torch.zeros(2, 20).long())
    one, two = task.halves()
    assert len(one) == len(two) == 10
    prompts = [{tuple(row) for part in (h.clean, h.corrupt) for row in part.tolist()}
               for h in (one, two)]  # fmt: skip
    assert not prompts[0] & prompts[1]
    chain = TokenizedTask("chain", rows[:2], rows[1:3], *torch.zeros(2, 2).long())
    with pytest.raises(ValueError, match="cannot be halved"):
        chain.halves()


def test_a_model_that_guesses_has_no_circuit(tiny_gemma2: Any) -> None:
    pairs = [Pair("a b", "b a", "a", "b"), Pair("b a", "a b", "b", "a")] * 8
    with pytest.raises(ValueError, match="guessing might do too"):
        check_able(tokenize_pairs("mine", pairs, tiny_gemma2.tokenizer), tiny_gemma2)


def test_pairs_from_files(tmp_path: Path) -> None:
    pairs = [Pair("The keys", "The key", " are", " is"), Pair("1 2", "1 3", "3", "null")]
    ours = pd.DataFrame([vars(pair) for pair in pairs])
    theirs = ours.set_axis(["clean_prefix", "patch_prefix", "clean_answer", "patch_answer"], axis=1)
    ours.to_csv(tmp_path / "pairs.csv", index=False)
    ours.to_parquet(tmp_path / "pairs.parquet")
    theirs.to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    theirs.to_json(tmp_path / "pairs.json", orient="records", lines=True)
    for suffix in ("csv", "parquet", "jsonl", "json"):
        assert read_pairs(tmp_path / f"pairs.{suffix}") == pairs
    ours.assign(wrong=["x", None]).to_parquet(tmp_path / "gap.parquet")
    with pytest.raises(ValueError, match="lacks a prompt or an answer in row 2"):
        read_pairs(tmp_path / "gap.parquet")
    ours.drop(columns="wrong").to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(ValueError, match="columns clean, corrupt, right. Pairs need"):
        read_pairs(tmp_path / "few.csv")
    with pytest.raises(FileNotFoundError, match="No pairs at"):
        read_pairs(tmp_path / "none.csv")
    (tmp_path / "pairs.txt").touch()
    with pytest.raises(ValueError, match="expected .csv"):
        read_pairs(tmp_path / "pairs.txt")


HEADER = b"clean,corrupt,right,wrong\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is damaged, empty, not UTF-8 or not csv: No columns"),
        ("a.csv", HEADER, "has 0 rows"),
        ("a.csv", HEADER + b"caf\xe9,tea,a,b\n", "not UTF-8 or not csv: 'utf-8' codec"),
        ("a.csv", HEADER + b"a,b,c\n", "lacks a prompt or an answer in row 1"),
        ("a.csv", HEADER + b"a,b,c,d\na,b,,d\n", "lacks a prompt or an answer in row 2"),
        ("a.csv", HEADER + b"a,b,c,d\na,b,c,d,e\n", "not csv: .*Expected 4 fields"),
        ("a.csv", HEADER + b"a, b,c,d,e\n", "not csv: "),
        ("a.csv", b"\0\1\2", "columns"),
        ("a.jsonl", b"", "has 0 rows|not jsonl"),
        ("a.jsonl", b'{"clean": "a"', "not jsonl: "),
        ("a.jsonl", b"[1, 2]\n", "not jsonl|has 1 rows with the columns 0"),
        ("a.jsonl", b'{"clean": "a", "corrupt": "b", "right": null, "wrong": "d"}\n', "in row 1"),
        ("a.jsonl", b'{"clean": "a", "corrupt": "b", "right": ["c"], "wrong": "d"}', r"\['c'\]"),
        ("a.jsonl", b'{"clean": "a", "corrupt": "b", "right": true, "wrong": "d"}\n', "not text"),
        ("a.parquet", b"PAR1 and no more", "not parquet: "),
        ("a.parquet", b"", "not parquet: "),
    ],
)
def test_a_damaged_file_of_pairs_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").mkdir()
    with pytest.raises(ValueError, match="is damaged"):
        read_pairs(tmp_path / "pairs.csv")
