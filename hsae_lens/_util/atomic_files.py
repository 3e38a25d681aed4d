"""Files appear whole or not at all."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
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
        fresh = Path(beside) / folder.name
        fresh.mkdir()
        yield fresh
        _put_in_place(fresh, folder, Path(beside) / ".former")


@contextmanager
def resuming_folder(folder: str | Path, settings: str) -> Iterator[Path]:
    """As :func:`replacing_folder`, but where the process was stopped or killed, the next call with
    the same settings is given the folder as it was left, a hidden ``.unfinished-…`` beside.

    What was left by other settings goes. So does all of it at an error, which would come again.
    """
    folder = Path(folder).resolve()
    beside = folder.with_name(f".unfinished-{folder.name}")
    mark, fresh = beside / "settings", beside / folder.name
    if not mark.exists() or mark.read_text(encoding="utf-8") != settings:
        shutil.rmtree(beside, ignore_errors=True)
        fresh.mkdir(parents=True)
        mark.write_text(settings, encoding="utf-8")
    fresh.mkdir(exist_ok=True)  # killed after it was put in its place, it is gone from here
    try:
        yield fresh
        _put_in_place(fresh, folder, beside / ".former")
    except Exception:
        shutil.rmtree(beside)
        raise
    shutil.rmtree(beside)


def _put_in_place(fresh: Path, folder: Path, former: Path) -> None:
    """Renames ``fresh`` to ``folder``, and what was there to ``former``."""
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


def write_json(value: Any, path: Path) -> None:
    """A value as JSON, whole or not at all."""
    with replacing_file(path) as fresh:
        fresh.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
