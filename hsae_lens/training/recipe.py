"""Recipes: the flags of ``hsae train`` in a YAML file."""

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

MODEL_DTYPE = "model_dtype"  # our own flag

COMMA_LISTS = ("budgets", "budget_weights")  # written 1,2,4 on the command line

SET_AFTERWARDS = ("seqpos_slice", "exclude_special_tokens")
"""Flags of which SAELens' command line cannot take a list (with None, or at all)."""


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("hsae_lens.training") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


class _AsWritten(UniqueKeyLoader):
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
        path = resources.files("hsae_lens.training") / "recipes" / f"{name_or_file}.yaml"
    recipe = read_yaml(path, _AsWritten)
    if not isinstance(recipe, dict) or not recipe:
        raise ValueError(f"The recipe {name_or_file} must be a flat mapping of flags to values.")
    return recipe


def known_flags(architecture: str) -> dict[str, tuple[Any, Any]]:
    """The flags of ``hsae train`` with their types and defaults.

    Raises:
        ValueError: for an unknown architecture.
    """
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        hint = did_you_mean(architecture, SAE_TRAINING_CLASS_REGISTRY)
        raise ValueError(f"Unknown architecture {architecture!r}.{hint}")
    sae = SAE_TRAINING_CLASS_REGISTRY[architecture][1]
    flags: dict[str, tuple[Any, Any]] = {"architecture": (str, ""), MODEL_DTYPE: (str, AUTO)}
    for owner in (LanguageModelSAERunnerConfig, LoggingConfig, sae):
        types = get_type_hints(owner)
        for field in fields(owner):
            name = f"sae.{field.name}" if field.name in flags else field.name  # as SAELens names it
            flags[name] = (types[field.name], _default(field))
    return {name: flag for name, flag in flags.items() if name not in ("sae", "logger", "metadata")}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def recipe_flags(
    recipe: dict[str, Any], known: dict[str, tuple[Any, Any]]
) -> tuple[list[str], dict[str, Any]]:
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
            flags += _none(key, kind, default)
        elif isinstance(value, dict):
            flags.append(f"--{key}={_json(key, value, kind)}")
        elif isinstance(value, list) and key in SET_AFTERWARDS:
            afterwards[key] = _whole_numbers(key, value)
        else:
            flags.append(f"--{key}={_text(key, value, kind)}")
    return flags, afterwards


def _none(key: str, kind: Any, default: Any) -> list[str]:
    """None on SAELens' command line: a flag without a value, where None is not the default."""
    if default is None:
        return []
    if NoneType not in get_args(kind):
        raise ValueError(f"The recipe's {key} is null, which it cannot be: leave the key out.")
    return [f"--{key}"]


def _text(key: str, value: Any, kind: Any) -> str:
    if isinstance(value, list):
        if key not in COMMA_LISTS or not all(isinstance(v, str) for v in value):
            raise ValueError(f"The recipe's {key} is {value}: it takes one value, no such list.")
        return ",".join(value)
    if int in (kind, *get_args(kind)):
        with contextlib.suppress(ValueError, OverflowError):
            if float(value) == int(float(value)) and "e" in value.lower():  # 1e9, say
                return str(int(float(value)))
    return str(value)


def _json(key: str, value: dict[str, Any], kind: Any) -> str:
    if kind not in (dict[str, Any], dict[str, Any] | None):
        raise ValueError(f"The recipe's {key} is a mapping: it must be a flat mapping of flags.")
    return json.dumps(_typed(value))


def _typed(value: Any) -> Any:
    """What YAML makes of the texts in a mapping."""
    if isinstance(value, dict):
        return {name: _typed(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_typed(v) for v in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def _whole_numbers(key: str, value: list[Any]) -> list[int] | tuple[int | None, ...]:
    try:
        if key == "seqpos_slice":
            return tuple(None if v is None else int(v) for v in value)
        return [int(v) for v in value]
    except (ValueError, TypeError) as error:
        raise ValueError(f"The recipe's {key} is {value}: it takes whole numbers.") from error
