"""Text in, token sequences out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from tqdm.auto import tqdm

DEFAULT_CONTEXT = 128  # tokens in a sequence, where an SAE does not say
FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}


def cpython_reference() -> list[str]:
    """CPython's own language reference, one document per topic: 465 kB of English everyone has."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def open_text(path: str | Path, streaming: bool = False) -> Any:
    """A local text, JSONL, JSON or parquet file, or a folder of one kind, as a SAELens dataset.

    Plain text becomes one row per paragraph (blank-line separated). Other formats keep their
    columns; SAELens reads ``text``, ``tokens`` or ``input_ids``.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: if the format is not one of these, or a folder mixes them.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"No text at {path}.")
    files = sorted(f for f in path.rglob("*") if f.suffix in FORMATS) if path.is_dir() else [path]
    kinds = {FORMATS.get(file.suffix) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(
            f"Cannot read {path} as a dataset: expected one kind of {', '.join(FORMATS)}, found "
            f"{', '.join(sorted({f.suffix or f.name for f in files})) or 'no such file'}."
        )
    kind = kinds.pop()
    options: dict[str, Any] = {"sample_by": "paragraph"} if kind == "text" else {}
    dataset: Any = load_dataset(
        kind, data_files=[str(f) for f in files], split="train", streaming=streaming, **options
    )
    return dataset


def documents_of(path: str | Path) -> list[str]:
    """The documents of a local file or folder with a ``text`` column.

    Raises:
        ValueError: if there is no such column.
    """
    dataset = open_text(path)
    if "text" not in dataset.column_names:
        raise ValueError(f"{path} has no 'text' column, only {', '.join(dataset.column_names)}.")
    return [text for text in dataset["text"] if text.strip()]


def hold_out(documents: Sequence[str], share: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Splits whole documents into (kept, held out), ``share`` of the characters held out.

    Raises:
        ValueError: if one part would be empty.
    """
    shuffled = list(documents)
    random.Random(seed).shuffle(shuffled)
    wanted = share * sum(map(len, shuffled))
    held: list[str] = []
    while shuffled and sum(map(len, held)) < wanted:
        held.append(shuffled.pop())
    if not held or not shuffled:
        raise ValueError(
            f"{len(documents)} documents are too few to hold out {share:.0%} of whole documents."
        )
    return shuffled, held


def tokenize(
    documents: Iterable[str], tokenizer: Any, context_size: int, progress: bool = True
) -> torch.Tensor:
    """Documents joined into sequences of ``context_size`` tokens, as SAELens does when training.

    Every sequence begins with BOS and documents are separated by BOS; the rest of the last
    sequence is dropped.

    Returns:
        int64 ``[n_sequences, context_size]``.

    Raises:
        ValueError: if the text does not fill one sequence.
    """
    bos = tokenizer.bos_token_id
    # verbose=False: a document may be longer than the model's context, it is cut afterwards.
    tokens = (
        torch.tensor(
            tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"],
            dtype=torch.int64,
        )
        for document in tqdm(documents, desc="Tokenizing", disable=not progress, leave=False)
    )
    sequences = list(
        concat_and_batch_sequences(
            tokens,
            context_size,
            begin_batch_token_id=bos,
            sequence_separator_token_id=bos,
        )
    )
    if not sequences:
        raise ValueError(f"The text is shorter than one sequence of {context_size} tokens.")
    return torch.stack(sequences)


def sample_tokens(
    path: str | Path | None, tokenizer: Any, context_size: int | None, n_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """About ``n_tokens`` of a local file or folder (None: CPython's reference), taken evenly.

    Returns:
        int64 ``[n_sequences, context_size]``, every sequence from another stretch of the text, and
        the document of each ``[n_sequences]``.
    """
    context_size = context_size or DEFAULT_CONTEXT
    texts = documents_of(path) if path else cpython_reference()
    everything = tokenize(texts, tokenizer, context_size)
    documents = document_of_each(everything, tokenizer.bos_token_id)
    n = min(len(everything), max(1, n_tokens // context_size))
    evenly = torch.linspace(0, len(everything) - 1, n).long()
    return everything[evenly], documents[evenly]


def sequences_of(
    dataset: Dataset, tokenizer: Any, context_size: int | None = None, progress: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """A data set as sequences, and which document each one is of.

    Args:
        dataset: rows of ``tokens`` or ``input_ids``, cut to ``context_size`` as SAELens does (each
            row its own document), or of ``text``.
        context_size: tokens in a sequence; None for the rows' own length, or 128 for text.

    Returns:
        int64 ``[n_sequences, context_size]`` and ``[n_sequences]``.

    Raises:
        ValueError: if it is no such data set, has none of these columns, or too few tokens for one
            sequence.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "Give tokens [n_sequences, context_size] or a datasets.Dataset (one split, not "
            f"streamed), got a {type(dataset).__name__}."
        )
    columns = dataset.column_names
    column = next((name for name in ("tokens", "input_ids", "text") if name in columns), None)
    if column is None:
        raise ValueError(
            "The data set needs a column 'text', 'tokens' or 'input_ids' and has only "
            f"{', '.join(columns) or 'none'}. Rename the right one (dataset.rename_column)."
        )
    if column == "text":
        documents = (document for document in dataset["text"] if document)
        sequences = tokenize(documents, tokenizer, context_size or DEFAULT_CONTEXT, progress)
        return sequences, document_of_each(sequences, tokenizer.bos_token_id)
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in dataset[column]]
    shortest = min(map(len, rows), default=0)
    context_size = context_size or shortest
    if not 0 < context_size <= shortest:
        raise ValueError(
            f"The shortest row of {column!r} has {shortest} tokens; every row must fill a sequence "
            f"of {context_size or 1}. Give longer rows, or text."
        )
    return torch.stack([row[:context_size] for row in rows]), torch.arange(len(rows))


def document_of_each(tokens: torch.Tensor, bos: int) -> torch.Tensor:
    """Which document each sequence starts in ``[n_sequences]``; BOS separates documents.

    Sequences that continue one document are not independent of each other.
    """
    begun = (tokens[:, 1:] == bos).sum(-1).cumsum(0)
    return torch.cat([begun.new_zeros(1), begun[:-1]])


def token_dataset(tokens: torch.Tensor) -> Dataset:
    """Tokens ``[n_sequences, context_size]`` as the pre-tokenized dataset SAELens reads."""
    return Dataset.from_dict({"tokens": tokens.numpy()})
