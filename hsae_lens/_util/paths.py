"""Paths with the home directory written out, and the user's cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """The path with ``~`` replaced by a home directory.

    Raises:
        ValueError: if that home is unknown. (``Path.expanduser`` raises RuntimeError.)
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: there is no such home directory; set HOME, or write the path out."
        ) from error


def cache_dir(name: str) -> Path:
    """A folder of the user's cache, created: ``HSAE_CACHE_DIR`` or the platform's own place.

    Raises:
        OSError: if there is no such place or it cannot be made; says what to set.
    """
    try:
        folder = _base() / name
        folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise OSError(
            f"No folder for the cache ({error}). Set HSAE_CACHE_DIR to one that can be written."
        ) from error
    return folder


def _base() -> Path:
    if root := os.environ.get("HSAE_CACHE_DIR"):
        return expand_home(root)
    if sys.platform == "darwin":
        return expand_home("~/Library/Caches/hsae_lens")
    if sys.platform == "win32":
        return expand_home(os.environ.get("LOCALAPPDATA") or "~") / "hsae_lens" / "cache"
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hsae_lens"
