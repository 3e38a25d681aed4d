"""Where files that can be made again are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hsae_lens.files import expanded


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
        return expanded(root)
    if sys.platform == "darwin":
        return expanded("~/Library/Caches/hsae_lens")
    if sys.platform == "win32":
        return expanded(os.environ.get("LOCALAPPDATA") or "~") / "hsae_lens" / "cache"
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hsae_lens"
