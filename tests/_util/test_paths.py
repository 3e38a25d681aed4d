"""Home directories and the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsae_lens._util.paths import cache_dir


def test_the_cache_may_be_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HSAE_CACHE_DIR", "~/x")
    assert cache_dir("models") == tmp_path / "x" / "models"
    (tmp_path / "file").touch()
    monkeypatch.setenv("HSAE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="No folder for the cache .*Set HSAE_CACHE_DIR to one that"):
        cache_dir("models")
