"""Clean/corrupt pairs of prompts with a right and a wrong next token, in one tokenizer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hsae_lens._util.paths import expand_home
from hsae_lens.evaluation.tasks.metrics import LogitDiff

logger = logging.getLogger(__name__)

PAIR_COLUMNS = (
    ("clean", "corrupt", "right", "wrong"),
    ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),  # feature-circuits' files
)
"""Columns that a file of pairs may have, in the order of :class:`Pair`."""


def _csv(path: Path) -> pd.DataFrame:
    """As text: an answer may be a digit, and a prompt the word "null"."""
    with warnings.catch_warnings():
        # That all rows are longer than the header: prompts with commas that are not in quotes.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)


def _json_lines(path: Path) -> pd.DataFrame:
    return pd.read_json(path, lines=True, dtype=False)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".json": _json_lines,  # feature-circuits' suffix
    ".parquet": pd.read_parquet,
}
"""How a file of pairs is read, by its suffix."""


@dataclass(frozen=True)
class Pair:
    """Two prompts and the next tokens that are right for one and wrong for the other."""

    clean: str
    corrupt: str
    right: str
    wrong: str


@dataclass(frozen=True)
class TokenizedTask:
    """A task in one tokenizer.

    clean, corrupt: int64 ``[n, context]``, BOS first.  right, wrong: int64 ``[n]``.
    """

    name: str
    clean: torch.Tensor
    corrupt: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: slice | list[int]) -> TokenizedTask:
        parts = (self.clean, self.corrupt, self.right, self.wrong)
        return TokenizedTask(self.name, *(part[rows] for part in parts))

    def halves(self) -> tuple[TokenizedTask, TokenizedTask]:
        """Two parts without a prompt in common, clean or corrupt: one to find, one to judge.

        Pairs are dealt out in order; one whose prompts have gone to different halves is left out.

        Raises:
            ValueError: if one half would be empty.
        """
        of_prompt: dict[tuple[int, ...], int] = {}
        halves: tuple[list[int], list[int]] = ([], [])
        for n, prompts in enumerate(zip(self.clean.tolist(), self.corrupt.tolist(), strict=True)):
            known = {of_prompt[tuple(p)] for p in prompts if tuple(p) in of_prompt}
            if len(known) == 2:
                continue
            half = known.pop() if known else int(len(halves[0]) > len(halves[1]))
            halves[half].append(n)
            of_prompt |= {tuple(p): half for p in prompts}
        if not all(halves):
            raise ValueError(
                f"The {len(self)} pairs of {self.name!r} cannot be halved without a prompt in both "
                "halves. More, and more different, pairs are needed."
            )
        return self[halves[0]], self[halves[1]]

    @property
    def metric(self) -> LogitDiff:
        """Right minus wrong logit, which the model should find positive."""
        return LogitDiff(self.right, self.wrong)


def read_pairs(path: str | Path) -> list[Pair]:
    """Pairs from a CSV, JSON-lines or parquet file with one of :data:`PAIR_COLUMNS`.

    Answers are taken as they stand: most tokenizers want a leading space in them.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it cannot be read, or has other
            columns, another format, no rows, or gaps.
    """
    path = expand_home(path)
    if not path.exists():
        raise FileNotFoundError(f"No pairs at {path}.")
    if path.suffix not in READERS:
        raise ValueError(f"Cannot read pairs from {path}: expected {', '.join(READERS)}.")
    try:
        table = READERS[path.suffix](path)
    except Exception as error:  # pandas and pyarrow raise whatever their parsers do
        raise ValueError(
            f"{path} is damaged, empty, not UTF-8 or not {path.suffix[1:]}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    for columns in PAIR_COLUMNS:
        if set(columns) <= set(table.columns) and len(table):
            rows = table[list(columns)].itertuples(index=False, name=None)
            return [_pair(path, n, row) for n, row in enumerate(rows, 1)]
    raise ValueError(
        f"{path} has {len(table)} rows with the columns {', '.join(map(str, table.columns))}. "
        f"Pairs need {' or '.join(', '.join(columns) for columns in PAIR_COLUMNS)}."
    )


def _pair(path: Path, n: int, row: Sequence[Any]) -> Pair:
    for text in row:
        # A number is text (the year 1732), but lists and truth values are a mistake.
        if isinstance(text, bool) or not isinstance(text, str | Integral) or text == "":
            raise ValueError(
                f"{path} lacks a prompt or an answer in row {n}, or it is not text: {text!r}."
            )
    return Pair(*map(str, row))


def tokenize_pairs(
    name: str,
    pairs: Iterable[Pair],
    tokenizer: Any,
    n: int | None = None,
    fewest: int | None = None,
) -> TokenizedTask:
    """Pairs of the most common length whose answers are single tokens; the first ``n`` of them.

    Args:
        n: how many; None for all.
        fewest: how many must qualify; None for all that are asked for. If fewer than asked for do,
            the log says how many were left out and why.

    Raises:
        ValueError: if fewer qualify, with an example of what does not.
    """
    pairs = list(pairs)
    by_length: dict[int, list[tuple[list[int], list[int], int, int]]] = {}
    refused = ""
    for pair in pairs:
        clean, corrupt, right, wrong = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (pair.clean, pair.corrupt, pair.right, pair.wrong)
        )
        if len(right) != 1 or len(wrong) != 1:
            refused = f"{pair.right!r} or {pair.wrong!r} is several tokens in this tokenizer"
        elif len(clean) != len(corrupt):
            refused = f"{pair.clean!r} and {pair.corrupt!r} are of different length"
        elif right == wrong or clean == corrupt:
            refused = f"{pair.clean!r} and its corrupt prompt, or their answers, are the same"
        else:
            by_length.setdefault(len(clean), []).append((clean, corrupt, right[0], wrong[0]))
    chosen = max(by_length.values(), key=len, default=[])
    wanted = len(pairs) if n is None else n
    needed = max(1, wanted if fewest is None else fewest)
    different = "prompts are of different lengths" if len(by_length) > 1 else "there are no more"
    reason = refused or different
    if len(chosen) < needed:
        raise ValueError(
            f"The task {name!r} has {len(chosen)} pairs of one length with single-token answers, "
            f"{needed} are needed ({reason})."
        )
    if len(chosen) < wanted:
        logger.warning("%s: %d pairs of %d are used (%s).", name, len(chosen), wanted, reason)
    clean, corrupt, right, wrong = (list(column) for column in zip(*chosen[:wanted], strict=True))
    return TokenizedTask(
        name,
        _with_bos(clean, tokenizer),
        _with_bos(corrupt, tokenizer),
        torch.tensor(right),
        torch.tensor(wrong),
    )


def _with_bos(rows: Sequence[list[int]], tokenizer: Any) -> torch.Tensor:
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return torch.tensor([start + row for row in rows])
