"""Runs that are killed, terminated and interrupted leave whole checkpoints or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import interrupted_runs
from sae_lens import TrainingSAE

from hsae_lens.training.checkpoints import missing_from_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of the runs, and how those ended that were not killed from outside."""
    folder = tmp_path_factory.mktemp("runs")
    script = [sys.executable, interrupted_runs.__file__, str(folder)]
    run = subprocess.run(script, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder, run.stdout.split()


def test_checkpoints_are_whole_whenever_a_run_is_killed(runs: tuple[Path, list[str]]) -> None:
    folder, _ = runs
    cut_short = 0
    for n in range(interrupted_runs.KILLS):
        checkpoints = folder / f"killed-{n}" / "checkpoints"
        cut_short += len(list(checkpoints.rglob(".saving-*")))
        found = list(checkpoints.glob("*/[0-9]*"))
        assert found, (folder / f"killed-{n}" / "said.txt").read_text()
        for checkpoint in found:
            assert missing_from_checkpoint(checkpoint) == []
            assert {"runner_cfg.json", "sparsity.safetensors"} < {
                f.name for f in checkpoint.iterdir()
            }
            TrainingSAE.load_from_disk(checkpoint)
            state = torch.load(checkpoint / "trainer_state.pt", weights_only=False)
            assert state["n_training_samples"] == int(checkpoint.name)
            updates = state["optimizer"]["state"][0]["step"]
            assert state["n_training_samples"] == updates * interrupted_runs.BATCH
    assert cut_short, "no kill came while a checkpoint was written: this test saw nothing"


def test_a_run_killed_at_its_last_save_does_not_look_finished(
    runs: tuple[Path, list[str]],
) -> None:
    folder, (last, _) = runs
    assert last == "-9"
    assert not (folder / "last" / "sae").exists()


def test_a_stop_during_the_norm_estimate_comes_at_once(runs: tuple[Path, list[str]]) -> None:
    folder, (_, terminated) = runs
    assert terminated == str(interrupted_runs.STOPPED)
    assert not (folder / "terminated" / "checkpoints").exists(), "there was nothing to save"
