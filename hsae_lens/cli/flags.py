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
    """A flag for each field of a config dataclass that has a help text.

    ``device`` and ``dtype`` are the same for every command: :func:`add_model_flags`.
    """
    for field in fields(config):
        if field.name in MODEL_FLAGS:
            add_model_flags(parser, field.name, default=str(field.default))
        elif field.name in help_texts:
            kind = type(field.default) if isinstance(field.default, int | float) else str
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=field.default, help=help_texts[field.name])


def add_model_flags(
    parser: argparse.ArgumentParser, *names: str, default: str | None = None
) -> None:
    """``--device`` and ``--dtype``, or those named, checked before anything is opened."""
    for name in names or MODEL_FLAGS:
        kind, usual, text = MODEL_FLAGS[name]
        parser.add_argument(f"--{name}", type=kind, default=default or usual, help=text)


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


MODEL_FLAGS: dict[str, tuple[Callable[[str], str], str, str]] = {
    "device": (device, "cpu", "where to run: cpu, cuda, cuda:1 or mps"),
    "dtype": (
        dtype,
        "auto",
        "of the language model: auto, float32, bfloat16 or float16; auto measures which is faster",
    ),
}
"""Type, default and help of each."""


def config_from_flags(parsed: argparse.Namespace, config: Any) -> Any:
    """A config dataclass from the flags of the same names."""
    return config(**{field.name: getattr(parsed, field.name) for field in fields(config)})
