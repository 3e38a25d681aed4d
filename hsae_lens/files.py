"""Files appear whole or not at all, and a damaged one says so."""

from __future__ import annotations

import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors import SafetensorError

logger = logging.getLogger(__name__)


def saved_whole(save: Callable[[Path], tuple[Path, Path]], path: str | Path) -> tuple[Path, Path]:
    """Runs a SAELens ``save`` as :func:`replacing_files` does."""
    with replacing_files(path) as fresh:
        weights, config = save(fresh)
    return Path(path) / weights.name, Path(path) / config.name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file beside ``path`` to write, and renames it over ``path`` if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | Path, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Gives an empty folder to write files in, and moves them into ``folder`` if all went well.

    What is refused or interrupted leaves ``folder`` as it was. Files of the same names are
    replaced; those of ``owned`` that this run did not write belong to an earlier one and would be
    mixed with it: they are moved to ``earlier-1``, ``earlier-2``, …, never deleted.

    Args:
        owned: names (of files in ``folder``) that this kind of run or its sequels write.
    """
    folder = Path(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Inside, because the folder may be a link or a mount: renaming does not cross file systems.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as beside:
            fresh = Path(beside)
            yield fresh
            written = [file.relative_to(fresh) for file in fresh.rglob("*") if file.is_file()]
            _set_aside(folder, [name for name in owned if Path(name) not in written])
            for name in written:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(fresh / name, folder / name)
    except BaseException:
        for empty in made:
            if empty.exists() and not any(empty.iterdir()):
                empty.rmdir()
        raise


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside ``folder`` to fill, and puts it in its place if all went well.

    ``folder`` is there whole or not at all, whenever the process is killed; one that was there
    before goes when the new one is complete. A killed process leaves a hidden ``.saving-…`` beside.
    """
    folder = Path(folder).resolve()  # of a link, what it points to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".saving-") as beside:
        fresh, former = Path(beside) / folder.name, Path(beside) / ".former"
        fresh.mkdir()
        yield fresh
        try:
            if folder.exists():
                os.replace(folder, former)
            os.replace(fresh, folder)
        except BaseException:
            if former.exists() and not folder.exists():
                os.replace(former, folder)
            raise


def _set_aside(folder: Path, names: Sequence[str]) -> None:
    stale = [name for name in names if (folder / name).exists()]
    if not stale:
        return
    n = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    aside = folder / f"earlier-{n}"
    aside.mkdir()
    for name in stale:
        os.replace(folder / name, aside / name)
    logger.warning("Moved %s of an earlier run to %s.", ", ".join(stale), aside)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, whole or not at all."""
    with replacing(path) as fresh:
        table.to_csv(fresh, index=False)


NAMES = {"sae", "text", "task", "dataset", "rule", "site", "token", "ranks", "explanation",
         "fires_on", "promotes"}  # fmt: skip
"""Columns of text, whatever it looks like: an SAE may be in a folder ``42`` or ``nan``."""


def read_csv(path: str | Path) -> pd.DataFrame:
    """A table as :func:`write_csv` wrote it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged, or no table.
    """
    try:
        columns = pd.read_csv(path, nrows=0).columns
        return pd.read_csv(
            path,
            dtype={name: str for name in columns if name in NAMES},
            keep_default_na=False,
            na_values={name: ["", "nan"] for name in columns if name not in NAMES},
        )
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is no table ({reason}).") from error


def write_json(value: Any, path: Path) -> None:
    """A value as JSON, whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@contextmanager
def explaining_bad_files(path: str | Path) -> Iterator[None]:
    """Turns the errors of a missing or damaged saved SAE into ones that say what to do."""
    path = Path(path)
    try:
        yield
    except FileNotFoundError as error:
        missing = [f for f in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME) if not (path / f).exists()]
        raise FileNotFoundError(
            f"No saved SAE at {path}: {' and '.join(missing) or error} missing. Give the folder "
            "that save_model or a training run wrote."
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{path / SAE_WEIGHTS_FILENAME} is damaged or cut short ({error}). Copy or download it "
            "again, or go back to an earlier checkpoint."
        ) from error
