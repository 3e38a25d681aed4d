"""What the shipped SAE is trained on, and how its run goes on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from hsae_lens.text import hold_out

pytest.importorskip("sae_probes")
from pretraining.__main__ import latest_checkpoint, remember_settings
from pretraining.corpus import documents


def test_the_corpus_is_distinct_varied_and_the_same_every_time() -> None:
    some = documents(20_000)
    assert len(set(some)) == len(some) > 5_000
    assert min(map(len, some)) >= 80
    assert 1_000_000 < sum(map(len, some)) < 113 * 30_000
    assert documents(20_000) == some
    assert any("#include" in text for text in some), "code"
    assert any("was born" in text for text in some), "encyclopaedic prose"
    kept, held = hold_out(some, 0.02)
    assert not set(kept) & set(held)


def test_a_run_goes_on_from_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for n, name in enumerate(("a/200", "b/100", "b/300")):
        (tmp_path / name).mkdir(parents=True)
        if name != "b/300":  # cut off before the trainer's state was written
            (tmp_path / name / "trainer_state.pt").touch()
            os.utime(tmp_path / name / "trainer_state.pt", (n, n))
    assert latest_checkpoint(tmp_path) == str(tmp_path / "b/100")


def test_a_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    remember_settings(argparse.Namespace(layer=15, steps=10), tmp_path / "run")
    remember_settings(argparse.Namespace(layer=15, steps=10), tmp_path / "run")
    with pytest.raises(SystemExit, match="was begun with"):
        remember_settings(argparse.Namespace(layer=15, steps=20), tmp_path / "run")
