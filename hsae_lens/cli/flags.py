"""Commands and flags, in one style."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from simple_parsing.docstring import get_attribute_docstring

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

    Text for None, words for lists and ``--no-…`` for what is on: as a command line has them.
    """
    types = get_type_hints(config)
    for field in fields(config):
        if field.name not in but:
            flag = "--" + field.name.replace("_", "-")
            text = describe(config, field.name)
            parser.add_argument(flag, **_argument(field, types[field.name], text))


def _argument(field: Field[Any], kind: Any, text: str) -> dict[str, Any]:
    """What argparse must know of a field."""
    lazy = field.default_factory
    given: Any = field.default if lazy is MISSING else lazy()
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": given, "help": text}
    if kind == list[str]:  # left out, it is the config's own
        without = {"default": argparse.SUPPRESS, "required": given is MISSING}
        return {"action": "append", "help": text, **without}
    if kind in (list[int], list[int] | None):
        shown = given and ",".join(map(str, given))
        return {"type": whole_numbers, "default": shown, "help": text}
    if field.name in CHECKED:
        return {"type": CHECKED[field.name], "default": given, "help": text}
    return {"type": kind if kind in (int, float) else str, "default": given, "help": text}


def describe(config: Any, name: str) -> str:
    """The docstring under a field, in one line."""
    text = " ".join(get_attribute_docstring(config, name).docstring_below.split())
    return text.replace("``", "").replace("%", "%%")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--dtype`` of a command without a config; checked before work."""
    from hsae_lens.evaluation.inputs import EvalConfig

    for name, check in CHECKED.items():
        text = describe(EvalConfig, name)
        default = EvalConfig.__dataclass_fields__[name].default
        parser.add_argument(f"--{name}", type=check, default=default, help=text)


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
    asked = [int(part) for part in parts]
    numbers = sorted(set(asked))
    if numbers != asked:
        logger.warning("Took %s as %s.", text, ",".join(map(str, numbers)))
    return numbers


def device(text: str) -> str:
    """The name of a device that this machine has, for argparse."""
    from hsae_lens.models.devices import model_device

    return _asking(model_device, text)


def dtype(text: str) -> str:
    """The name of a number format, for argparse."""
    from hsae_lens.models.devices import AUTO, model_dtype

    return text if text == AUTO else _asking(model_dtype, text)  # auto measures: not yet


def _asking(check: Callable[[str], Any], text: str) -> str:
    try:
        check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


CHECKED: dict[str, Callable[[str], str]] = {"device": device, "dtype": dtype}
"""Flags that are the same for every command, and what argparse checks them with."""


def config_from_flags(parsed: argparse.Namespace, config: Any) -> Any:
    """A config dataclass from the flags of the same names."""
    given = vars(parsed)
    return config(**{f.name: given[f.name] for f in fields(config) if f.name in given})
