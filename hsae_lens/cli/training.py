"""``hsae demo`` and ``hsae train``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from hsae_lens.cli.flags import add_command, add_flags, config_from_flags


def add_training(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        _demo,
        help="train one SAE for every budget on a real model, with a control and a picture",
        description=(
            "Opens SmolLM2-135M, reads CPython's reference text, trains one hierarchical SAE and a "
            "control whose loss sees only K, and evaluates both at budgets 1, 2, 4, … K on "
            "held-out text. Takes a few minutes on two cores."
        ),
    )
    help_texts = {
        "steps": "training steps for each of the two SAEs, of 1024 tokens",
        "layer": "the residual stream after this block is rewritten",
        "d_sae": "number of latents",
        "k": "the largest budget, K",
        "text": "a local text, JSONL or parquet file or folder; None is CPython's reference",
        "out": "folder for the SAE, the table and the picture",
        "model": "hub name, local folder, or smollm2-135m",
        "minutes": "how long it may take in all; a slow machine reads less text",
        "eval_tokens": "about how many held-out tokens to evaluate on",
        "seed": "of the split, the initial weights and the order of the data",
    }
    from hsae_lens.training.demo import DemoConfig

    add_flags(demo, DemoConfig, help_texts)

    commands.add_parser(
        "train",
        help="train on any model and data set; takes every flag of SAELens' training command",
        add_help=False,
    )


def _demo(parsed: argparse.Namespace) -> None:
    from hsae_lens.training.demo import DemoConfig, run_demo

    run_demo(config_from_flags(parsed, DemoConfig))


def train_with(arguments: Sequence[str]) -> None:
    """``hsae train``: SAELens' own parser reads its flags."""
    from hsae_lens.training.command import train

    train(arguments)
