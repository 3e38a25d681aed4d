"""Clean/corrupt pairs of prompts with a right and a wrong next token, in one tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hsae_lens.models import input_device

COLUMNS = (
    ("clean", "corrupt", "right", "wrong"),
    ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),  # feature-circuits' files
)
"""Columns that a file of pairs may have, in the order of :class:`Pair`."""

READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    # As text: an answer may be a digit, and a prompt the word "null".
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".json": lambda path: pd.read_json(path, lines=True, dtype=False),  # feature-circuits' suffix
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
class LogitDiff:
    """The metric of a task: right minus wrong logit at the last position.

    ``metric(logits [n, context, d_vocab])`` gives ``[n]``; ``metric[rows]`` is that of some pairs,
    so that pairs can go through the model in batches.

    right, wrong: int64 ``[n]``.
    """

    right: torch.Tensor
    wrong: torch.Tensor

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        right, wrong = (
            last.gather(1, answer.to(last.device)[:, None]).squeeze(1)
            for answer in (self.right, self.wrong)
        )
        return right - wrong

    def __getitem__(self, rows: slice) -> LogitDiff:
        return LogitDiff(self.right[rows], self.wrong[rows])


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

    def __getitem__(self, rows: slice) -> TokenizedTask:
        parts = (self.clean, self.corrupt, self.right, self.wrong)
        return TokenizedTask(self.name, *(part[rows] for part in parts))

    @property
    def metric(self) -> LogitDiff:
        """Right minus wrong logit, which the model should find positive."""
        return LogitDiff(self.right, self.wrong)


@torch.no_grad()
def check_able(task: TokenizedTask, model: Any, batch_size: int = 16) -> float:
    """The model's accuracy on the clean prompts; takes one pass over them.

    Raises:
        ValueError: if it is not better than guessing by two standard errors: there is then nothing
            to explain.
    """
    values = [
        task[n : n + batch_size].metric(
            model(task.clean[n : n + batch_size].to(input_device(model)), prepend_bos=False)
        )
        for n in range(0, len(task), batch_size)
    ]
    accuracy = (torch.cat(values) > 0).double().mean().item()
    if not better_than_guessing(accuracy, len(task)):
        raise ValueError(
            f"The model solves {accuracy:.0%} of the {len(task)} pairs of {task.name!r}, which "
            "guessing might do too: there is no behaviour to find a circuit for. Take another task "
            "or model, or more pairs."
        )
    return accuracy


def better_than_guessing(accuracy: float, n: int) -> bool:
    """Whether an accuracy on ``n`` two-way choices is above 0.5 by two standard errors."""
    return accuracy > 0.5 + 2 * (0.25 / n) ** 0.5


def read_pairs(path: str | Path) -> list[Pair]:
    """Pairs from a CSV, JSON-lines or parquet file with one of :data:`COLUMNS`.

    Answers are taken as they stand: most tokenizers want a leading space in them.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it has other columns, another
            format or no rows.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"No pairs at {path}.")
    if path.suffix not in READERS:
        raise ValueError(f"Cannot read pairs from {path}: expected {', '.join(READERS)}.")
    table = READERS[path.suffix](path)
    for columns in COLUMNS:
        if set(columns) <= set(table.columns) and len(table):
            return [Pair(*row) for row in table[list(columns)].astype(str).itertuples(index=False)]
    raise ValueError(
        f"{path} has {len(table)} rows with the columns {', '.join(table.columns)}. Pairs need "
        + " or ".join(", ".join(columns) for columns in COLUMNS)
        + "."
    )


def tokenize_pairs(
    name: str, pairs: Iterable[Pair], tokenizer: Any, n: int | None = None
) -> TokenizedTask:
    """Pairs of the most common length whose answers are single tokens; the first ``n`` of them.

    Raises:
        ValueError: if fewer than ``n`` pairs qualify (None: fewer than all), with an example of
            what does not.
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
        else:
            by_length.setdefault(len(clean), []).append((clean, corrupt, right[0], wrong[0]))
    chosen = max(by_length.values(), key=len, default=[])
    wanted = len(pairs) if n is None else n
    if len(chosen) < wanted or not chosen:
        reason = refused or "prompts are of different lengths"
        raise ValueError(
            f"The task {name!r} has {len(chosen)} pairs of one length with single-token answers, "
            f"{max(wanted, 1)} are needed ({reason})."
        )
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
