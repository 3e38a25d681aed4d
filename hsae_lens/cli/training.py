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
    from hsae_lens.training.demo import DemoConfig

    add_flags(demo, DemoConfig)

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
