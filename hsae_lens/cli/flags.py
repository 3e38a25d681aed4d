"""Commands and flags, in one style. A config's flags are read from its fields."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, get_args, get_type_hints

from simple_parsing.docstring import get_attribute_docstring

from hsae_lens.models.devices import AUTO, model_device, model_dtype

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


def add_flags(parser: argparse.ArgumentParser, config: Any, *but: str) -> None:
    """A flag for each field of a config dataclass, ``but`` some; its docstring is the help.

    ``d_sae`` is ``--d-sae``, a bool also ``--no-…``, ``list[int]`` and ``list[float]`` numbers with
    commas, and ``list[str]`` a flag that is given again for each. None is what is left out.
    ``metrics`` is ``--metric``, as :data:`FLAG_NAMES` says.
    """
    types = get_type_hints(config)
    for field in fields(config):
        if field.name not in but:
            parser.add_argument(
                FLAG_NAMES.get(field.name, "--" + field.name.replace("_", "-")),
                help=describe(config, field.name),
                **_argument(field, types[field.name]),
            )


def _argument(field: Field[Any], kind: Any) -> dict[str, Any]:
    """What argparse must know of a field besides its name and help."""
    factory = field.default_factory
    default: Any = field.default if factory is MISSING else factory()
    if isinstance(kind, UnionType):  # of int | None, int
        kind = get_args(kind)[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": default}
    if kind == list[str]:  # argparse would append to a default: left out, the config has its own
        named = {"dest": field.name, "metavar": "FILE.py:NAME"} if field.name in FLAG_NAMES else {}
        required = default is MISSING
        return {"action": "append", "default": argparse.SUPPRESS, "required": required, **named}
    if kind in (list[int], list[float]):
        shown = ",".join(map(str, default)) if default else default
        read = whole_numbers if kind == list[int] else numbers
        return {"type": read, "default": shown, "metavar": "1,8,32"}
    if field.name in CHECKED_FLAGS:
        return {"type": CHECKED_FLAGS[field.name], "default": default}
    return {"type": kind if kind in (int, float) else str, "default": default}


def describe(config: Any, name: str) -> str:
    """The docstring under a field of a config, in one line as argparse takes it."""
    text = " ".join(get_attribute_docstring(config, name).docstring_below.split())
    return text.replace("``", "").replace("%", "%%")


def config_from_flags(parsed: argparse.Namespace, config: Any) -> Any:
    """A config dataclass from the flags of the same names."""
    given = vars(parsed)
    return config(**{f.name: given[f.name] for f in fields(config) if f.name in given})


def whole_numbers(text: str) -> list[int]:
    """Whole numbers with commas, ascending and each once: ``"8,4,8"`` is ``[4, 8]``, and says so.

    Raises:
        argparse.ArgumentTypeError: if one is not a whole number.
    """
    parts = [part.strip() for part in text.split(",")]
    # Longer ones are no sizes of anything either, and int() refuses the longest with other words.
    if bad := [part for part in parts if not (part.isdecimal() and len(part) < 10)]:
        raise argparse.ArgumentTypeError(
            f"whole numbers with commas, as in 1,8,32; got {bad[0]!r} in {text!r}"
        )
    return _ascending([int(part) for part in parts], text)


def numbers(text: str) -> list[float]:
    """Numbers with commas, as :func:`whole_numbers`; whole ones are ints.

    Raises:
        argparse.ArgumentTypeError: if one is not a finite number.
    """
    asked = []
    for part in text.split(","):
        try:
            value = float(part)
            asked.append(int(value) if value.is_integer() else value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"numbers with commas, as in 1,8.5,32; got {part.strip()!r} in {text!r}"
            ) from None
    if not all(map(math.isfinite, asked)):
        raise argparse.ArgumentTypeError(f"finite numbers with commas, got {text!r}")
    return _ascending(asked, text)


def _ascending(asked: list[Any], text: str) -> list[Any]:
    """Each once and in order; says so where that is not what was asked."""
    taken = sorted(set(asked))
    if taken != asked:
        logger.warning("Took %s as %s.", text, ",".join(map(str, taken)))
    return taken


def _device(text: str) -> str:
    return _checked(model_device, text)


def _dtype(text: str) -> str:
    return text if text == AUTO else _checked(model_dtype, text)  # auto measures: not yet


def _checked(check: Callable[[str], Any], text: str) -> str:
    """The text itself, if the check takes it; else its error in argparse's words."""
    try:
        check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


FLAG_NAMES = {"metrics": "--metric"}
"""Flags that are not called as their fields: given again for each, they name one."""

CHECKED_FLAGS: dict[str, Callable[[str], str]] = {"device": _device, "dtype": _dtype}
"""Flags that are the same for every command and refused before anything is opened."""
