"""Recipes: the flags of ``hsae train`` in a YAML file.

To add one, put ``NAME.yaml`` into the folder ``recipes/`` beside this file: a flag and its value a
line. ``hsae train --recipe NAME`` finds it there, and ``hsae train --help`` lists it.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import MISSING, Field, fields
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home
from hsae_lens._util.yaml_files import UniqueKeyLoader, read_yaml
from hsae_lens.models.devices import AUTO

RECIPES = resources.files("hsae_lens.training") / "recipes"

MODEL_DTYPE = "model_dtype"  # our own flag

COMMA_LISTS = ("budgets", "budget_weights")  # written 1,2,4 on the command line

SET_AFTERWARDS = ("seqpos_slice", "exclude_special_tokens")
"""Flags of which SAELens' command line cannot take a list (with None, or at all)."""

Flags = dict[str, tuple[Any, Any]]
"""Flags by name: type and default."""


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(Path(f.name).stem for f in RECIPES.iterdir() if f.name.endswith(".yaml"))


class _TextLoader(UniqueKeyLoader):
    """Values stay the text they are written as, like the command line's; null is None.

    YAML itself makes 1e-3 a text, 12:30 a number and no a bool.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_recipe(name_or_file: str) -> dict[str, Any]:
    """A recipe's keys and values, by name or from a YAML file; values are as they are written.

    Raises:
        ValueError: if there is no such recipe (the nearest names are said), or it is no mapping, or
            says a key twice.
    """
    path: Any = expand_home(name_or_file)
    if not path.is_file():
        names = recipe_names()
        if name_or_file not in names:
            raise ValueError(
                f"No recipe {name_or_file!r}: neither a file nor a name."
                f"{did_you_mean(name_or_file, names)}"
            )
        path = RECIPES / f"{name_or_file}.yaml"
    recipe = read_yaml(path, _TextLoader)
    if not isinstance(recipe, dict) or not recipe:
        raise ValueError(f"The recipe {name_or_file} must be a flat mapping of flags to values.")
    return recipe


def known_flags(architecture: str) -> Flags:
    """The flags of ``hsae train`` for an architecture.

    Raises:
        ValueError: for an unknown architecture.
    """
    if architecture not in list(SAE_TRAINING_CLASS_REGISTRY):  # a recipe's may be no text
        hint = did_you_mean(str(architecture), SAE_TRAINING_CLASS_REGISTRY)
        raise ValueError(f"Unknown architecture {architecture!r}.{hint}")
    sae = SAE_TRAINING_CLASS_REGISTRY[architecture][1]
    flags: Flags = {"architecture": (str, ""), MODEL_DTYPE: (str, AUTO)}
    for owner in (LanguageModelSAERunnerConfig, LoggingConfig, sae):
        types = get_type_hints(owner)
        for field in fields(owner):
            name = f"sae.{field.name}" if field.name in flags else field.name  # as SAELens names it
            flags[name] = (types[field.name], _default(field))
    return {name: flag for name, flag in flags.items() if name not in ("sae", "logger", "metadata")}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def recipe_flags(recipe: dict[str, Any], known: Flags) -> tuple[list[str], dict[str, Any]]:
    """A recipe as flags, and what can only be set on the config afterwards.

    Raises:
        ValueError: for a key that is no flag (the nearest are said) or a value it cannot have.
    """
    flags: list[str] = []
    afterwards: dict[str, Any] = {}
    for key, value in recipe.items():
        if key not in known:
            raise ValueError(f"The recipe's key {key!r} is no flag.{did_you_mean(str(key), known)}")
        kind, default = known[key]
        if value is None:
            flags += _flag_of_none(key, kind, default)
        elif isinstance(value, list) and key in SET_AFTERWARDS:
            afterwards[key] = _whole_numbers(key, value)
        else:
            flags.append(f"--{key}={_text_of(key, value, kind)}")
    return flags, afterwards


def _flag_of_none(key: str, kind: Any, default: Any) -> list[str]:
    """None on SAELens' command line: a flag without a value, where None is not the default."""
    if default is None:
        return []
    if NoneType not in get_args(kind):
        raise ValueError(f"The recipe's {key} is null, which it cannot be: leave the key out.")
    return [f"--{key}"]


def _text_of(key: str, value: Any, kind: Any) -> str:
    """A value as SAELens' command line reads it."""
    if isinstance(value, dict):
        if kind not in (dict[str, Any], dict[str, Any] | None):
            raise ValueError(f"The recipe's {key} is a mapping: it takes one value.")
        return json.dumps(_typed_by_yaml(value))
    if isinstance(value, list):
        if key not in COMMA_LISTS or not all(isinstance(v, str) for v in value):
            raise ValueError(f"The recipe's {key} is {value}: it takes one value, no such list.")
        return ",".join(value)
    if int in (kind, *get_args(kind)):
        with contextlib.suppress(ValueError, OverflowError):
            if float(value) == int(float(value)) and "e" in value.lower():  # 1e9, say
                return str(int(float(value)))
    return str(value)


def _typed_by_yaml(value: Any) -> Any:
    """What YAML makes of the texts in a mapping."""
    if isinstance(value, dict):
        return {name: _typed_by_yaml(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_typed_by_yaml(v) for v in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def _whole_numbers(key: str, value: list[Any]) -> list[int] | tuple[int | None, ...]:
    """A list for SAELens' config: a slice may hold None."""
    try:
        if key == "seqpos_slice":
            return tuple(None if v is None else int(v) for v in value)
        return [int(v) for v in value]
    except (ValueError, TypeError) as error:
        raise ValueError(f"The recipe's {key} is {value}: it takes whole numbers.") from error
