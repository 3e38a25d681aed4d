"""Commands and flags, in one style."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    help: str,
    description: str | None = None,
) -> argparse.ArgumentParser:
    """A command whose help shows its defaults and which calls ``run`` with what was parsed."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description or help[0].upper() + help[1:] + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_flags(parser: argparse.ArgumentParser, config: Any, help_texts: dict[str, str]) -> None:
    """A flag for each field of a config dataclass that has a help text."""
    for field in fields(config):
        if field.name in help_texts:
            kind = int if isinstance(field.default, int) else str
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=field.default, help=help_texts[field.name])


def config_of(parsed: argparse.Namespace, config: Any) -> Any:
    """A config dataclass from the flags of the same names."""
    return config(**{field.name: getattr(parsed, field.name) for field in fields(config)})
