"""The learning rate of ``hsae train`` where none is given."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from hsae_lens.training.command import parse_train_flags
from hsae_lens.training.learning_rate import LARGEST_LR, SMALLEST_LR, suggested_lr

QUIET = ["--verbose", "false", "--d_in", "32", "-k", "8"]


def test_it_is_the_demos_at_its_sizes_and_stays_in_a_sane_range() -> None:
    assert suggested_lr(4608, 1024) == 2e-3
    assert suggested_lr(18432, 1024) == 1e-3
    assert suggested_lr(18432, 16384) == 2e-3
    assert suggested_lr(16, 10**6) == LARGEST_LR
    assert suggested_lr(10**8, 1) == SMALLEST_LR


@pytest.mark.parametrize("sizes", [(0, 1024), (4608, 0)])
def test_sizes_that_cannot_be(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="d_sae and batch_size must be at least 1"):
        suggested_lr(*sizes)


def test_train_takes_it_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hsae_lens"):
        flags = [*QUIET, "--d_sae", "4608", "--train_batch_size_tokens", "1024"]
        cfg, _ = parse_train_flags(flags)
    assert (cfg.lr, cfg.lr_end) == (2e-3, 2e-4)
    assert "-LR-0.002-" in cfg.logger.run_name
    assert caplog.messages == [
        "lr 0.002, suggested for 4608 latents and batches of 1024 tokens; --lr sets another."
    ]


@pytest.mark.parametrize("name", ["mine", None])
def test_what_is_named_keeps_its_name(name: str | None) -> None:
    named = [] if name is None else ["--run_name", name]
    cfg, _ = parse_train_flags([*QUIET, "--d_sae", "64", "--lr_end", "7e-6", *named])
    assert cfg.lr_end == 7e-6
    assert (cfg.logger.run_name == name) == (name is not None)


def test_a_given_one_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine.yaml").write_text("lr: 5e-4\n")
    with caplog.at_level(logging.INFO, "hsae_lens"):
        for given in (["--lr", "5e-4"], ["--lr=5e-4"], ["--recipe", str(tmp_path / "mine.yaml")]):
            cfg, _ = parse_train_flags([*QUIET, "--d_sae", "64", *given])
            assert cfg.lr == 5e-4
        other = ["--architecture", "topk"]
        resumed = ["--resume_from_checkpoint", str(tmp_path)]  # its own is in the checkpoint
        for given in (other, resumed):
            assert parse_train_flags([*QUIET, "--d_sae", "64", *given])[0].lr == 3e-4
    assert not caplog.messages
