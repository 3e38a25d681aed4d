"""Files appear whole or not at all, and a damaged one says so."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors import SafetensorError


def saved_whole(save: Callable[[Path], tuple[Path, Path]], path: str | Path) -> tuple[Path, Path]:
    """Runs a SAELens ``save`` in a folder beside ``path``, then renames its files into place."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as beside:
        weights, config = save(Path(beside))
        for file in (weights, config):
            os.replace(file, path / file.name)
    return path / weights.name, path / config.name


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


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, whole or not at all."""
    with replacing(path) as fresh:
        table.to_csv(fresh, index=False)


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
