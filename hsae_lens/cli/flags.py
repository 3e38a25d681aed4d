"""Commands and flags, in one style."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

logger = logging.getLogger(__name__)


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
            kind = type(field.default) if isinstance(field.default, int | float) else str
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=field.default, help=help_texts[field.name])


def config_of(parsed: argparse.Namespace, config: Any) -> Any:
    """A config dataclass from the flags of the same names."""
    return config(**{field.name: getattr(parsed, field.name) for field in fields(config)})


def budgets_from(text: str) -> list[int]:
    """Budgets written with commas, ascending and each once: ``"8,4,8"`` is ``[4, 8]``, and says so.

    Raises:
        ValueError: if one is not a whole number of at least 1.
    """
    parts = [part.strip() for part in text.split(",")]
    # Longer ones are no budgets either, and int() refuses the longest with other words.
    if bad := [part for part in parts if not (part.isdecimal() and len(part) < 10 and int(part))]:
        raise ValueError(
            f"Budgets are whole numbers of at least 1 with commas, as in 1,8,32; got {bad[0]!r} in "
            f"{text!r}."
        )
    asked = [int(part) for part in parts]
    budgets = sorted(set(asked))
    if budgets != asked:
        logger.warning("Took the budgets %s as %s.", text, ",".join(map(str, budgets)))
    return budgets
