"""The ``hsae`` command, as a process and without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hsae_lens.cli import main

HSAE = Path(sys.executable).with_name("hsae")

SMALL = {
    "hook_name": "blocks.1.hook_resid_post",
    "d_in": 32,
    "d_sae": 64,
    "context_size": 32,
    "training_tokens": 1280,
    "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 4,
    "n_batches_in_buffer": 8,
    "n_batches_for_norm_estimate": 2,
    "lr_warm_up_steps": 2,
    "lr_decay_steps": 2,
    "n_checkpoints": 1,
    "device": "cpu",
    "log_to_wandb": "false",
}
"""Flags of a training run on the tiny Gemma-2."""


def hsae(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run([HSAE, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == expect, run.stdout + run.stderr
    return run


def says(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command without its process: exit status, output, errors."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as leaving:  # help, and what argparse refuses
        status = int(leaving.code or 0)
    return status, *capsys.readouterr()


def as_flags(settings: dict[str, object]) -> list[object]:
    return [part for key, value in settings.items() for part in (f"--{key}", value)]
