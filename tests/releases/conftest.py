"""What the tests of releases share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import training_sae
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from hsae_lens.releases import directory


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    before = dict(directory.RELEASES), dict(get_pretrained_saes_directory())
    yield
    tables = directory.RELEASES, get_pretrained_saes_directory()
    for names, entries in zip(tables, before, strict=True):
        names.clear()
        names.update(entries)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own with one small SAE in it, at layer-1."""
    training_sae().save_inference_model(tmp_path / "saes" / "layer-1")
    return tmp_path / "saes"
