"""Text in, token sequences out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from tqdm.auto import tqdm

from hsae_lens.models.text_files import cpython_reference, documents_of

DEFAULT_CONTEXT = 128  # tokens in a sequence, where an SAE does not say


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
    return tokenize_documents(documents, tokenizer, context_size, progress)[0]


def tokenize_documents(
    documents: Iterable[str], tokenizer: Any, context_size: int, progress: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`tokenize`, with the number of the document each sequence starts in.

    The tokens do not say it: every sequence begins with BOS, whether it goes on with a document or
    begins one. Sequences of one document are not independent of each other.

    Returns:
        int64 ``[n_sequences, context_size]`` and ``[n_sequences]``.

    Raises:
        ValueError: as :func:`tokenize`.
    """
    bos = tokenizer.bos_token_id
    # verbose=False: a document may be longer than the model's context, it is cut afterwards.
    tokens = [
        torch.tensor(
            tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"],
            dtype=torch.int64,
        )
        for document in tqdm(documents, desc="Tokenizing", disable=not progress, leave=False)
    ]
    sequences = list(_batched(tokens, context_size, bos))
    if not sequences:
        raise ValueError(f"The text is shorter than one sequence of {context_size} tokens.")
    # The same batching of the documents' numbers, with -1 wherever the tokens have a BOS.
    numbers = [torch.where(ids == bos, -1, n) for n, ids in enumerate(tokens)]
    rows = torch.stack(list(_batched(numbers, context_size, -1)))
    first = rows[torch.arange(len(rows)), (rows >= 0).int().argmax(dim=-1)]
    return torch.stack(sequences), first.cummax(0).values.clamp(min=0)


def _batched(
    documents: Iterable[torch.Tensor], context_size: int, bos: int
) -> Iterator[torch.Tensor]:
    return concat_and_batch_sequences(
        iter(documents),
        context_size,
        begin_batch_token_id=bos,
        sequence_separator_token_id=bos,
    )


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
    everything, documents = tokenize_documents(texts, tokenizer, context_size)
    chosen = evenly(everything, n_tokens)
    return everything[chosen], documents[chosen]


def evenly(sequences: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Numbers of some sequences ``[n, context]`` from all over: about ``n_tokens``, or one."""
    n = min(len(sequences), max(1, n_tokens // sequences.shape[1]))
    return torch.linspace(0, len(sequences) - 1, n).long()


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
        return tokenize_documents(documents, tokenizer, context_size or DEFAULT_CONTEXT, progress)
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in dataset[column]]
    shortest = min(map(len, rows), default=0)
    context_size = context_size or shortest
    if not 0 < context_size <= shortest:
        raise ValueError(
            f"The shortest row of {column!r} has {shortest} tokens; every row must fill a sequence "
            f"of {context_size or 1}. Give longer rows, or text."
        )
    return torch.stack([row[:context_size] for row in rows]), torch.arange(len(rows))


def token_dataset(tokens: torch.Tensor) -> Dataset:
    """Tokens ``[n_sequences, context_size]`` as the pre-tokenized dataset SAELens reads."""
    return Dataset.from_dict({"tokens": tokens.numpy()})
