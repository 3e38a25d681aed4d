"""Where files that can be made again are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir(name: str) -> Path:
    """A folder of the user's cache, created: ``HSAE_CACHE_DIR`` or the platform's own place."""
    if root := os.environ.get("HSAE_CACHE_DIR"):
        base = Path(root)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches" / "hsae_lens"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "hsae_lens" / "cache"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hsae_lens"
    folder = base / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
