"""A saved SAE's files: written whole, looked at before they are used, and a damaged one says so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.util import str_to_dtype
from safetensors import SafetensorError, safe_open
from typing_extensions import override

from hsae_lens._util.atomic_files import replacing_files
from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.models.devices import model_device

COPY_AGAIN = "Copy or download it again, or go back to an earlier checkpoint."


def save_whole(save: Callable[[Path], tuple[Path, Path]], path: str | Path) -> tuple[Path, Path]:
    """Runs a SAELens ``save`` as :func:`replacing_files` does."""
    with replacing_files(path) as fresh:
        weights, config = save(fresh)
    return Path(path) / weights.name, Path(path) / config.name


class CheckedFiles(SAE[Any]):
    """SAELens' saving and loading, whole and with a look at what is loaded.

    A base for an architecture, before SAELens' own.
    """

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """As SAELens' ``save_model``; the files appear whole or not at all."""
        return save_whole(super().save_model, path)

    @override
    @classmethod
    def load_from_disk(
        cls, path: str | Path, device: str = "cpu", *args: Any, **kwargs: Any
    ) -> Any:
        """As SAELens' ``load_from_disk``, with the cause and the fix when a file is damaged."""
        device = str(model_device(device))
        with explaining_bad_files(path):
            return super().load_from_disk(path, device, *args, **kwargs)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """What SAELens calls before it takes weights, whichever way they came."""
        check_weights(self, state_dict)


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
    cfg = read_json(file)
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


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: if it is none; names the file.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: it is no JSON ({error}). {COPY_AGAIN}") from error


def _check_fields(cfg: dict[str, Any]) -> None:
    """Raises ValueError where SAELens would take a default or a wrong type without a word."""
    architecture = cfg["architecture"]
    if not isinstance(architecture, str) or architecture not in SAE_CLASS_REGISTRY:
        raise ValueError(
            f"the architecture {architecture!r} is unknown; import the package that has it, if "
            f"there is one.{did_you_mean(str(architecture), SAE_CLASS_REGISTRY)}"
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
