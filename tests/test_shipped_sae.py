"""What the shipped SAE is trained on, and how its run goes on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hsae_lens.models.text_files import hold_out

pytest.importorskip("sae_probes")
from shipped_sae.__main__ import latest_checkpoint, remember_settings
from shipped_sae.corpus import documents


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


def checkpoint(folder: Path, time: int) -> Path:
    """A small one with everything a run goes on from, as SAELens names it."""
    folder.mkdir(parents=True)
    for name in ("cfg.json", "activation_scaler.json"):
        (folder / name).write_text("{}")
    for name in ("sae_weights.safetensors", "activations_store_state.safetensors"):
        save_file({"n": torch.zeros(1)}, folder / name)
    torch.save({"n_training_steps": time}, folder / "trainer_state.pt")
    os.utime(folder, (time, time))
    return folder


def test_a_run_goes_on_from_its_newest_whole_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latest_checkpoint(tmp_path) is None
    checkpoint(tmp_path / "a/200", 1)
    whole = checkpoint(tmp_path / "b/100", 2)
    broken = [checkpoint(tmp_path / f"b/30{n}", 3 + n) for n in range(3)]
    (broken[0] / "activation_scaler.json").unlink()  # what SAELens writes after the state
    state = broken[1] / "trainer_state.pt"
    state.write_bytes(state.read_bytes()[:-40])
    (broken[2] / "activations_store_state.safetensors").write_bytes(b"")
    for n, folder in enumerate(broken):
        os.utime(folder, (3 + n, 3 + n))
    broken.append(checkpoint(tmp_path / "b/.saving-x/400", 9))
    assert latest_checkpoint(tmp_path) == str(whole)
    said = capsys.readouterr().out
    for folder in broken:
        assert f"Passed over the checkpoint {folder}: " in said
    assert "a/200" not in said


def test_a_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    remember_settings(argparse.Namespace(layer=15, steps=10), tmp_path / "run")
    remember_settings(argparse.Namespace(layer=15, steps=10), tmp_path / "run")
    with pytest.raises(SystemExit, match="was begun with"):
        remember_settings(argparse.Namespace(layer=15, steps=20), tmp_path / "run")
