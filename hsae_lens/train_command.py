"""``hsae train``: SAELens' training command with recipes, local models and local text."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.util import str_to_dtype

from hsae_lens.models import open_model, opened_here
from hsae_lens.near import near
from hsae_lens.runner import HierarchicalTopKTrainingRunner
from hsae_lens.sae import ARCHITECTURE
from hsae_lens.text import open_text

USAGE = """\
usage: hsae train [--recipe NAME_or_file.yaml] [any flag of SAELens' training command]

The default architecture is hierarchical_topk. --model_name also takes a local Hugging Face folder
or smollm2-135m; --dataset_path also takes a local .txt, .md, .jsonl, .json or .parquet file, or a
folder of them. A recipe gives values for flags; flags on the command line win.

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
    """
    arguments = list(arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE.format(recipes=", ".join(recipe_names())), flush=True)
    cfg = parse(arguments)
    model = dataset = None
    if opened_here(cfg.model_name):
        model = _open_here(cfg)
    if Path(cfg.dataset_path).expanduser().is_file() or _folder_of_text(cfg.dataset_path):
        dataset = open_text(cfg.dataset_path, streaming=cfg.streaming)
    runner = HierarchicalTopKTrainingRunner(cfg, override_dataset=dataset, override_model=model)
    return runner.run()


def _open_here(cfg: LanguageModelSAERunnerConfig[Any]) -> Any:
    """A model SAELens could not open; ``dtype`` in model_from_pretrained_kwargs is the model's."""
    dtype = (cfg.model_from_pretrained_kwargs or {}).get("dtype", cfg.dtype)
    cfg.model_from_pretrained_kwargs = {}
    model = open_model(cfg.model_name, cfg.llm_device or cfg.device, str_to_dtype(dtype))
    if "hook_resid" in cfg.hook_name and cfg.sae.d_in != model.cfg.d_model:
        raise ValueError(
            f"--d_in is {cfg.sae.d_in} but {cfg.hook_name} of {cfg.model_name} has width "
            f"{model.cfg.d_model}."
        )
    return model


def parse(arguments: Sequence[str]) -> LanguageModelSAERunnerConfig[Any]:
    """The runner's config from flags and an optional ``--recipe``.

    SAELens' own parser reads every flag, the recipe's values too: they are put before the command
    line's, so that later ones win.
    """
    arguments, recipe = _take_option(list(arguments), "--recipe")
    flags = _recipe_flags(load_recipe(recipe)) if recipe else []
    chosen = [*flags, *arguments]
    if not any(a.split("=")[0] in ("--architecture", "--sae") for a in chosen):
        chosen = ["--architecture", ARCHITECTURE, *chosen]
    return _parse_cfg_args(chosen)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("hsae_lens") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_file: str) -> dict[str, Any]:
    """A recipe's keys and values, by name or from a YAML file.

    Raises:
        ValueError: if there is no such recipe (the nearest names are said), or it is not a flat
            mapping.
    """
    path: Any = Path(name_or_file).expanduser()
    if not path.is_file():
        names = recipe_names()
        if name_or_file not in names:
            raise ValueError(
                f"No recipe {name_or_file!r}: neither a file nor a name.{near(name_or_file, names)}"
            )
        path = resources.files("hsae_lens") / "recipes" / f"{name_or_file}.yaml"
    recipe = yaml.safe_load(path.read_text())
    if not isinstance(recipe, dict) or any(isinstance(v, dict) for v in recipe.values()):
        raise ValueError(f"The recipe {name_or_file} must be a flat mapping of flags to values.")
    return recipe


def _recipe_flags(recipe: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for key, value in recipe.items():
        if value is None:
            continue
        flags.append("-k" if key == "k" else f"--{key}")
        if isinstance(value, list) and key not in ("budgets", "budget_weights"):
            flags.extend(map(str, value))
        elif isinstance(value, list):  # ours are written 1,2,4
            flags.append(",".join(map(str, value)))
        else:
            flags.append(str(value).lower() if isinstance(value, bool) else str(value))
    return flags


def _take_option(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    for n, argument in enumerate(arguments):
        if argument == name:
            if n + 1 == len(arguments):
                raise ValueError(f"{name} needs a value.")
            return arguments[:n] + arguments[n + 2 :], arguments[n + 1]
        if argument.startswith(f"{name}="):
            return arguments[:n] + arguments[n + 1 :], argument.split("=", 1)[1]
    return arguments, None


def _folder_of_text(dataset_path: str) -> bool:
    """A folder of plain files. Folders that ``datasets`` saved itself are left to SAELens."""
    path = Path(dataset_path).expanduser()
    return bool(dataset_path) and path.is_dir() and not (path / "dataset_info.json").exists()
