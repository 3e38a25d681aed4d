"""``hsae train``: SAELens' training command with recipes, local models and local text."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home
from hsae_lens._util.private_names import parse_runner_flags, validate_seqpos
from hsae_lens._util.unavailable import ModelUnavailableError
from hsae_lens.models.devices import AUTO, dtype_name, model_dtype
from hsae_lens.models.opening import open_model, opened_here
from hsae_lens.models.text_files import FORMATS, open_text
from hsae_lens.sae.inference import ARCHITECTURE
from hsae_lens.training.recipe import (
    MODEL_DTYPE,
    known_flags,
    load_recipe,
    recipe_flags,
    recipe_names,
)
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner
from hsae_lens.training.settings import check_runner_settings

USAGE = """\
usage: hsae train [--recipe NAME_or_file.yaml] [--model_dtype auto|float32|bfloat16|float16]
                  [any flag of SAELens' training command]

The default architecture is hierarchical_topk. --model_name also takes a local Hugging Face folder
or smollm2-135m; --dataset_path also takes a local .txt, .md, .jsonl, .json, .parquet or .csv file,
a folder of them, or a data set saved to disk. A recipe gives values for flags, null for none; flags
on the command line win.

--dtype is SAELens': the type of the activations. The language model's own is --model_dtype. Models
that only hsae opens (local folders, smollm2-135m) are by default in "auto", bfloat16 where this
machine multiplies it faster than float32; those SAELens opens are in its default.

recipes in the package: {recipes}

example:
  hsae train --model_name smollm2-135m --hook_name blocks.15.hook_resid_post --d_in 576 \\
    --d_sae 4608 -k 64 --dataset_path my_text.txt --is_dataset_tokenized false \\
    --training_tokens 1000000 --log_to_wandb false --output_path runs/mine

SAELens' flags:
"""


def train(arguments: Sequence[str]) -> Any:
    """Trains as the flags say and returns the training SAE.

    Raises:
        ValueError: for an unknown recipe, a key that is no flag, or bad values.
        FileNotFoundError, ModelUnavailableError: if the text or the model is not there.
    """
    arguments = list(arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE.format(recipes=", ".join(recipe_names())), flush=True)
    cfg, dtype = _parse(arguments)
    check_runner_settings(cfg)
    dataset = _open_data(cfg)
    model = _open_model(cfg, dtype)
    try:
        runner = HierarchicalTopKTrainingRunner(cfg, override_dataset=dataset, override_model=model)
    except ConnectionError as error:
        raise ValueError(f"{error}. Check the network, or give a local folder.") from error
    return runner.run()


def _open_data(cfg: LanguageModelSAERunnerConfig[Any]) -> Any:
    """Local data, or None for SAELens to fetch it from the hub."""
    name = cfg.dataset_path
    if not name:
        if cfg.use_cached_activations:
            return None
        raise ValueError("--dataset_path is missing: give local text, or a name on the hub.")
    if _looks_local(name, FORMATS) or Path(name).exists():
        return open_text(name, streaming=cfg.streaming)
    return None


def _looks_local(name: str, suffixes: Container[str] = ()) -> bool:
    """Whether a name is a path: the hub's are ``name`` or ``organisation/name``."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in suffixes


def _open_model(cfg: LanguageModelSAERunnerConfig[Any], dtype: str | None) -> Any:
    """A model that SAELens could not open, or None for it to open the model."""
    name, given = cfg.model_name, cfg.model_from_pretrained_kwargs or {}
    device = cfg.llm_device or cfg.device
    if _looks_local(name) and not expand_home(name).is_dir():
        raise ModelUnavailableError(f"No model at {name}: there is no such folder.")
    if cfg.model_class_name != "HookedTransformer" or not opened_here(name):
        if dtype is not None:
            kwargs = {**given, "dtype": dtype_name(model_dtype(dtype, device))}
            cfg.model_from_pretrained_kwargs = kwargs
        return None
    others = set(given) - {"dtype", "center_writing_weights"}
    if others:
        raise ValueError(
            f"--model_from_pretrained_kwargs {', '.join(sorted(others))} cannot be used with "
            f"{name}, whose weights are not processed: leave them out."
        )
    cfg.model_from_pretrained_kwargs = {}
    return open_model(name, device, dtype or given.get("dtype", AUTO))


def parse(arguments: Sequence[str]) -> LanguageModelSAERunnerConfig[Any]:
    """The runner's config from flags and an optional ``--recipe``.

    SAELens' own parser reads every flag, the recipe's values too: they are put before the command
    line's, so that later ones win.

    Raises:
        ValueError: for an unknown recipe or flag (the nearest are said), or a bad value.
    """
    return _parse(arguments)[0]


def _parse(arguments: Sequence[str]) -> tuple[LanguageModelSAERunnerConfig[Any], str | None]:
    """The runner's config, and the language model's dtype if one is asked for."""
    given, recipe = _take_option(list(arguments), "--recipe")
    flags: list[str] = []
    afterwards: dict[str, Any] = {}
    if recipe:
        values = load_recipe(recipe)
        chosen = _value_of(given, ("--architecture", "--sae")) or values.get("architecture")
        flags, afterwards = recipe_flags(values, known_flags(chosen or ARCHITECTURE))
    flags, dtype = _take_option([*flags, *given], f"--{MODEL_DTYPE}")
    if _value_of(flags, ("--architecture", "--sae")) is None:
        flags = ["--architecture", ARCHITECTURE, *flags]
    cfg = _config(flags)
    for name, value in afterwards.items():
        if _value_of(given, (f"--{name}",)) is None:
            setattr(cfg, name, value)
    validate_seqpos(seqpos=cfg.seqpos_slice, context_size=cfg.context_size)
    return cfg, dtype


def _config(flags: list[str]) -> LanguageModelSAERunnerConfig[Any]:
    """What SAELens' parser makes of flags; its complaints, of a screen each, as one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_runner_flags(flags)
    except argparse.ArgumentError as error:
        raise ValueError(str(error).replace("_parse_", "")) from error
    except ArithmeticError as error:  # SAELens divides by these while it sums up the run
        counts = "--train_batch_size_tokens, --feature_sampling_window and --wandb_log_frequency"
        raise ValueError(f"{counts} must be at least 1, and no count huge ({error}).") from error
    except SystemExit as leaving:
        if not leaving.code:
            raise
        complaint = said.getvalue().strip().split("\n")[-1].split("error: ")[-1]
        unknown = re.search(r"unrecognized arguments: --?([^\s=]+)", complaint)
        hint = did_you_mean(unknown[1], known_flags(ARCHITECTURE)) if unknown else ""
        raise ValueError(f"{complaint}.{hint}") from leaving


def _value_of(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """The value of a flag, under any of its names."""
    for name in names:
        value = _take_option(list(arguments), name)[1]
        if value is not None:
            return value
    return None


def _take_option(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """The other arguments, and the last value of this option."""
    others: list[str] = []
    value = None
    rest = iter(arguments)
    for argument in rest:
        if argument == name:
            value = next(rest, None)
            if value is None:
                raise ValueError(f"{name} needs a value.")
        elif argument.startswith(f"{name}="):
            value = argument.split("=", 1)[1]
        else:
            others.append(argument)
    return others, value
