"""Local text and data sets: files, folders of them, and what ``datasets`` saved."""

from __future__ import annotations

import logging
import math
import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    Features,
    IterableDataset,
    Value,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home

logger = logging.getLogger(__name__)

FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
}

ABOUT = ("readme", "license", "notice", "citation", "changelog", "dataset_infos")
"""How the names of files begin that are about the data beside them."""

SEPARATOR = "<|endoftext|>"  # on a line of its own it ends a document of a plain text file

STRINGS = (Value("string"), Value("large_string"))

PIECE = 1 << 16  # characters of a document that SAELens tokenizes at a time


def cpython_reference() -> list[str]:
    """CPython's own language reference, one document per topic: 465 kB of English everyone has."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def standard_library() -> list[str]:
    """The source code of Python's standard library, one document per module of its top folder."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))]


def open_text(path: str | Path, streaming: bool = False) -> Any:
    """Local text, JSONL, JSON, parquet or CSV as the data set SAELens trains on.

    A file; a folder of one kind of them (a README or licence beside it is not data), of which the
    split ``train`` is read if it has several; or a folder that ``datasets`` saved to disk. Plain
    text becomes rows of ``text``, long documents several of them, cut between lines. Other formats
    keep their columns; SAELens reads ``text``, ``tokens`` or ``input_ids``. Rows whose
    ``text`` is null are left out.

    Raises:
        FileNotFoundError: if there is nothing there.
        ValueError: if the format is not one of these, a folder mixes them, has several splits but
            no ``train``, or the data is damaged, not UTF-8 or empty.
    """
    path = _existing(path)
    try:
        if _is_plain_text(path):
            return _open_plain_text(path, streaming)
        return _without_nulls(_data_set(path, streaming), path)
    except StopIteration as error:  # how datasets says that a file has no rows
        raise ValueError(_empty(path)) from error
    except (ValueError, TypeError, OSError, ArrowException, DatasetGenerationError) as error:
        if str(path) in str(error) or getattr(error, "errno", None):
            raise  # it says what is wrong, or it is the disk
        why = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{path} is damaged: {why.rstrip('.')}.") from error


def documents_of(path: str | Path) -> list[str]:
    """The documents of a local file or folder with a ``text`` column.

    A plain text file is one document, unless lines that are ``<|endoftext|>`` divide it. In the
    other formats each row is one.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_text`, or if there is no such column.
    """
    path = _existing(path)
    if _is_plain_text(path):
        documents = list(_plain_text(path))
    else:
        dataset = open_text(path)
        columns = dataset.column_names
        if "text" not in columns:
            raise ValueError(f"{path} has no 'text' column, only {', '.join(columns)}.")
        documents = [text for text in dataset["text"] if text.strip()]
    if not documents:
        raise ValueError(_empty(path))
    return documents


def hold_out(documents: Sequence[str], share: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Splits whole documents into (kept, held out), ``share`` of the characters held out.

    Of a single document the end is held out.

    Raises:
        ValueError: if one part would be empty.
    """
    if len(documents) == 1:
        kept, held = _cut(documents[0], 1 - share)
    else:
        kept, held = list(documents), []
        random.Random(seed).shuffle(kept)
        wanted = share * sum(map(len, kept))
        while kept and sum(map(len, held)) < wanted:
            held.append(kept.pop())
    if not held or not kept:
        raise ValueError(
            f"The text is too short to hold out {share:.0%} of it: "
            f"{len(documents)} documents of {sum(map(len, documents)):,} characters."
        )
    return kept, held


def _cut(document: str, share: float) -> tuple[list[str], list[str]]:
    """The first ``share`` of a document and the rest, cut between paragraphs if it has any."""
    about = int(share * len(document))
    for gap in ("\n\n", "\n", " "):
        at = document.rfind(gap, 0, about)
        if at > 0:
            return [document[:at]], [document[at + len(gap) :]]
    return [document], []


def _existing(path: str | Path) -> Path:
    path = expand_home(path)
    if not path.exists():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"No text at {path}.{did_you_mean(path.name, beside) if beside else ''}"
        )
    return path


def _files(path: Path) -> list[Path]:
    """The file itself, or the files with data in a folder.

    Raises:
        ValueError: if there are none, they are of several kinds, or empty.
    """
    files = [path] if path.is_file() else _data_files(path)
    kinds = {FORMATS.get(file.suffix) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(
            f"Cannot read {path} as a dataset: expected one kind of {', '.join(FORMATS)}, found "
            f"{', '.join(sorted({f.suffix or f.name for f in files})) or 'no such file'}."
        )
    if not any(file.stat().st_size > 1000 or file.read_bytes().strip() for file in files):
        raise ValueError(_empty(path))
    return files


def _data_files(folder: Path) -> list[Path]:
    inside = [f.relative_to(folder) for f in folder.rglob("*") if f.suffix in FORMATS]
    files = [f for f in inside if not any(part.startswith(".") for part in f.parts)]
    if any(FORMATS[f.suffix] != "text" for f in files):
        files = [f for f in files if not f.name.lower().startswith(ABOUT)]
    return sorted(folder / f for f in files)


def _saved_by_datasets(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _is_plain_text(path: Path) -> bool:
    return not _saved_by_datasets(path) and FORMATS[_files(path)[0].suffix] == "text"


def _plain_text(path: Path, longest: float = math.inf) -> Iterator[str]:
    """The documents of plain text files; those of over ``longest`` characters cut between lines.

    Raises:
        ValueError: if a file is not UTF-8.
    """
    for file in _files(path):
        try:
            with file.open(encoding="utf-8-sig") as lines:
                pieces = _pieces(lines, longest)
                yield from (piece.strip("\n") for piece in pieces if piece.strip())
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf8(file, error)) from error


def _pieces(lines: Iterable[str], longest: float) -> Iterator[str]:
    piece: list[str] = []
    length = 0
    for line in lines:
        ends = line.strip() == SEPARATOR
        if ends or length + len(line) > longest:
            yield "".join(piece)
            piece, length = [], 0
        if not ends:
            piece.append(line)
            length += len(line)
    yield "".join(piece)


def _open_plain_text(path: Path, streaming: bool) -> Dataset | IterableDataset:
    """Plain text as rows. It is read through once before, so that a bad byte is found in time.

    Raises:
        ValueError: if there is only white space, or a file is not UTF-8.
    """
    if not sum(1 for _ in _rows(str(path))):
        raise ValueError(_empty(path))
    if not streaming:
        return Dataset.from_list(list(_rows(str(path))))
    features = Features({"text": Value("string")})
    return IterableDataset.from_generator(_rows, features, gen_kwargs={"path": str(path)})


def _rows(path: str) -> Iterator[dict[str, str]]:
    return ({"text": piece} for piece in _plain_text(Path(path), PIECE))


def _data_set(path: Path, streaming: bool) -> Any:
    """What ``datasets`` makes of a data file or a folder, one split of it."""
    if _saved_by_datasets(path):
        saved: Any = load_from_disk(str(path))
        return saved if isinstance(saved, Dataset) else saved[_split_of(path, list(saved))]
    files = _files(path)
    kind = FORMATS[files[0].suffix]
    if kind != "parquet":
        for file in files:
            _check_utf8(file)
    if kind == "json":
        for file in files:
            _check_begins_with_rows(file)
    if path.is_file():
        return load_dataset(kind, data_files=[str(path)], split="train", streaming=streaming)
    folder = str(path.resolve())  # a bare name could be one of the hub's
    try:
        splits = get_dataset_split_names(folder)
    except ValueError as error:  # several configurations, say
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: {why} Give one of its folders or files.") from error
    return load_dataset(folder, split=_split_of(path, splits), streaming=streaming)


def _check_utf8(file: Path) -> None:
    """Reads a file through once: while it is streamed, a bad byte would be found late."""
    try:
        with file.open(encoding="utf-8") as lines:
            for _ in lines:
                pass
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(file, error)) from error


def _check_begins_with_rows(file: Path) -> None:
    """A file whose first value is null ends the process within pyarrow (26)."""
    with file.open(encoding="utf-8") as lines:
        first = next((line.strip() for line in lines if line.strip()), "{")
    if first[0] not in "{[":
        raise ValueError(
            f"{file} is damaged: rows are JSON objects, it begins with {first[:20]!r}."
        )


def _split_of(path: Path, splits: Sequence[str]) -> str:
    """Which split to train on: ``train``, or the only one.

    Raises:
        ValueError: if there are several and none is ``train``.
    """
    if len(splits) == 1:
        return splits[0]
    if "train" not in splits:
        raise ValueError(
            f"{path} has the splits {', '.join(splits)} and no 'train': give one of them, its "
            "folder or file."
        )
    logger.info("Reading the split 'train' of %s, which has %s.", path, ", ".join(splits))
    return "train"


def _without_nulls(dataset: Any, path: Path) -> Any:
    """The rows whose ``text`` is not null.

    Raises:
        ValueError: if there are none, or ``text`` is not text.
    """
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(_empty(path))
    if "text" not in first:
        return dataset
    has_text = partial(_has_text, path=path)
    if isinstance(dataset, Dataset):
        column = dataset.data.column("text")
        column.validate(full=True)  # that it is UTF-8, as Arrow promises
        nulls = column.null_count
        if nulls:
            logger.warning("Left out %d rows of %s whose 'text' is null.", nulls, path)
        if nulls or dataset.features["text"] not in STRINGS:
            # In memory: a data set saved to disk would get its cache file among the user's.
            dataset = dataset.filter(has_text, keep_in_memory=True)
    else:
        dataset = dataset.filter(has_text)
    if next(iter(dataset), None) is None:
        raise ValueError(_empty(path))
    return dataset


def _has_text(row: dict[str, Any], path: Path) -> bool:
    if not isinstance(row["text"], str | None):
        raise ValueError(f"'text' in {path} holds {row['text']!r}, which is no text.")
    return row["text"] is not None


def _empty(path: Path) -> str:
    return f"{path} is empty: there is no text in it."


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    return (
        f"{path} is not UTF-8 text ({error.reason}, byte {error.object[error.start]:#x}). Convert "
        f"it, for instance with iconv -f latin1 -t utf-8."
    )
