"""Files appear whole or not at all, and a damaged one says so."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.util import str_to_dtype
from safetensors import SafetensorError, safe_open

from hsae_lens.near import near

logger = logging.getLogger(__name__)

COPY_AGAIN = "Copy or download it again, or go back to an earlier checkpoint."


def saved_whole(save: Callable[[Path], tuple[Path, Path]], path: str | Path) -> tuple[Path, Path]:
    """Runs a SAELens ``save`` as :func:`replacing_files` does."""
    with replacing_files(path) as fresh:
        weights, config = save(fresh)
    return Path(path) / weights.name, Path(path) / config.name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file beside ``path`` to write, and renames it over ``path`` if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | Path, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Gives an empty folder to write files in, and moves them into ``folder`` if all went well.

    What is refused or interrupted leaves ``folder`` as it was. Files of the same names are
    replaced; those of ``owned`` that this run did not write belong to an earlier one and would be
    mixed with it: they are moved to ``earlier-1``, ``earlier-2``, …, never deleted.

    Args:
        owned: names (of files in ``folder``) that this kind of run or its sequels write.
    """
    folder = Path(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Inside, because the folder may be a link or a mount: renaming does not cross file systems.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as beside:
            fresh = Path(beside)
            yield fresh
            written = [file.relative_to(fresh) for file in fresh.rglob("*") if file.is_file()]
            _set_aside(folder, [name for name in owned if Path(name) not in written])
            for name in written:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(fresh / name, folder / name)
    except BaseException:
        for empty in made:
            if empty.exists() and not any(empty.iterdir()):
                empty.rmdir()
        raise


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside ``folder`` to fill, and puts it in its place if all went well.

    ``folder`` is there whole or not at all, whenever the process is killed; one that was there
    before goes when the new one is complete. A killed process leaves a hidden ``.saving-…`` beside.
    """
    folder = Path(folder).resolve()  # of a link, what it points to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".saving-") as beside:
        fresh, former = Path(beside) / folder.name, Path(beside) / ".former"
        fresh.mkdir()
        yield fresh
        try:
            if folder.exists():
                os.replace(folder, former)
            os.replace(fresh, folder)
        except BaseException:
            if former.exists() and not folder.exists():
                os.replace(former, folder)
            raise


def _set_aside(folder: Path, names: Sequence[str]) -> None:
    stale = [name for name in names if (folder / name).exists()]
    if not stale:
        return
    n = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    aside = folder / f"earlier-{n}"
    aside.mkdir()
    for name in stale:
        os.replace(folder / name, aside / name)
    logger.warning("Moved %s of an earlier run to %s.", ", ".join(stale), aside)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, whole or not at all."""
    with replacing(path) as fresh:
        table.to_csv(fresh, index=False)


NAMES = {"sae", "text", "task", "dataset", "rule", "site", "token", "ranks", "explanation",
         "fires_on", "promotes"}  # fmt: skip
"""Columns of text, whatever it looks like: an SAE may be in a folder ``42`` or ``nan``."""


def read_csv(path: str | Path) -> pd.DataFrame:
    """A table as :func:`write_csv` wrote it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged, or no table.
    """
    try:
        columns = pd.read_csv(path, nrows=0).columns
        return pd.read_csv(
            path,
            dtype={name: str for name in columns if name in NAMES},
            keep_default_na=False,
            na_values={name: ["", "nan"] for name in columns if name not in NAMES},
        )
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is no table ({reason}).") from error


def write_json(value: Any, path: Path) -> None:
    """A value as JSON, whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def expanded(path: str | Path) -> Path:
    """The path with ``~`` replaced by a home directory.

    Raises:
        ValueError: if that home is unknown. (``Path.expanduser`` raises RuntimeError.)
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: there is no such home directory; set HOME, or write the path out."
        ) from error


class EachKeyOnce(yaml.SafeLoader):
    """YAML forbids repeated keys; PyYAML keeps the last one and drops the others."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"{key.value!r} is there twice, again in line {line}.")
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(file: Any, loader: type[EachKeyOnce] = EachKeyOnce) -> Any:
    """What a YAML file holds; a key that is there twice is an error, not a silent loss.

    Args:
        file: a path, or a file in a package.
        loader: how its values are read.

    Raises:
        ValueError: if it is no YAML, or repeats a key; names file, key and line.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error


@contextmanager
def explaining_bad_files(path: str | Path, weights: Path | None = None) -> Iterator[None]:
    """Looks at a saved SAE before it is loaded inside; says what is wrong with it and what helps.

    Reads its config and the names and types in its weights, not the weights: those are looked at
    by :func:`check_weights` while they are loaded.

    Args:
        path: the folder. weights: their file, where it is not in that folder.

    Raises:
        FileNotFoundError: if it is not the folder of a saved SAE.
        ValueError: for a file that is damaged; names it.
    """
    path = Path(path)
    weights = weights or path / SAE_WEIGHTS_FILENAME
    _look_for(path, weights)
    read_config(path)
    try:
        _check_types(weights)
        yield
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged or cut short ({error}). {COPY_AGAIN}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path / SAE_CFG_FILENAME} does not describe an SAE: {error!r}."
        ) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(f"{weights} does not fit: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _look_for(path: Path, weights: Path) -> None:
    if path.is_file():
        raise FileNotFoundError(
            f"{path} is a file. Give the folder that holds {SAE_CFG_FILENAME} and "
            f"{SAE_WEIGHTS_FILENAME}."
        )
    missing = [file.name for file in (path / SAE_CFG_FILENAME, weights) if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"No saved SAE at {path}: {' and '.join(missing)} missing. Give the folder that "
            "save_model or a training run wrote."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """``cfg.json`` of a saved SAE, in SAELens' present form, if an SAE can be made from it.

    Raises:
        ValueError: if not; names the file, the cause and what helps.
    """
    file = folder / SAE_CFG_FILENAME
    try:
        cfg = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: it is no JSON ({error}). {COPY_AGAIN}") from error
    try:
        if not isinstance(cfg, dict):
            raise ValueError(f"it holds {type(cfg).__name__} where names and values belong")
        cfg = handle_config_defaulting(cfg)
        _check_fields(cfg)
        SAE_CLASS_REGISTRY[cfg["architecture"]][1].from_dict(cfg)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(
            f"{file} does not describe an SAE: {said.rstrip('.')}. {COPY_AGAIN}"
        ) from error
    return cfg


def _check_fields(cfg: dict[str, Any]) -> None:
    """Raises ValueError where SAELens would take a default or a wrong type without a word."""
    architecture = cfg["architecture"]
    if not isinstance(architecture, str) or architecture not in SAE_CLASS_REGISTRY:
        raise ValueError(
            f"the architecture {architecture!r} is unknown; import the package that has it, if "
            f"there is one.{near(str(architecture), SAE_CLASS_REGISTRY)}"
        )
    for field in fields(SAE_CLASS_REGISTRY[architecture][1]):
        name, value = field.name, cfg.get(field.name)
        if field.type in (bool, "bool") and name in cfg and not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        if field.type in (int, "int") and (name in cfg or name == "k" or field.default is MISSING):
            _check_whole(value, name, "and is missing" if name not in cfg else f"got {value!r}")
    if cfg.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise ValueError(
            f"reshape_activations must be 'none' or 'hook_z', got {cfg['reshape_activations']!r}"
        )
    str_to_dtype(cfg.get("dtype", "float32"))


def _check_whole(value: Any, name: str, said: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**30:
        raise ValueError(f"{name} must be a whole number of at least 1, {said}")


def _check_types(weights: Path) -> None:
    """Raises ValueError for weights that are not floating point: a cast would hide it."""
    with open(weights, "rb"):
        pass  # safetensors takes a file that may not be read for one that is not there
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
        types = [str(file.get_slice(name).get_dtype()) for name in names]
    for name, kind in zip(names, types, strict=True):
        if not kind.startswith(("F", "BF")):
            raise ValueError(
                f"{weights}: {name} is stored as {kind}; an SAE's weights are floating point "
                "(a quantised SAE must be converted back first)."
            )


def check_weights(sae: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError unless ``state`` has the tensors of ``sae``, in their shapes and finite."""
    needed = sae.state_dict()
    wrong = [f"{name} is missing" for name in needed if name not in state]
    wrong += [f"{name} does not belong there" for name in state if name not in needed]
    for name in (name for name in needed if name in state):
        found, shape = list(state[name].shape), list(needed[name].shape)
        if found != shape:
            wrong.append(f"{name} has the shape {found} where {SAE_CFG_FILENAME} says {shape}")
    if wrong:
        raise ValueError(
            f"{SAE_WEIGHTS_FILENAME} does not fit: {'; '.join(wrong[:4])}. {COPY_AGAIN}"
        )
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise ValueError(
                f"{SAE_WEIGHTS_FILENAME}: {name} holds NaN or infinite numbers in {tensor.dtype}. "
                "Go back to an earlier checkpoint, or load it in a wider dtype."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number in it is NaN or infinite; unlike ``isfinite`` it makes no second tensor."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(math.isfinite(extreme) for extreme in map(float, tensor.aminmax()))  # NaN if any is
