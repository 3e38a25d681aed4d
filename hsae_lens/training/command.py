"""What ``hsae train`` does: SAELens' training command with recipes, local models, local text."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import re
from collections.abc import Container, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, TrainingSAE

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home
from hsae_lens._util.private_names import parse_runner_flags, validate_seqpos
from hsae_lens._util.unavailable import ModelUnavailableError
from hsae_lens.models.devices import AUTO, dtype_name, model_dtype
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import model_name_of, open_model, opened_here
from hsae_lens.models.text_files import FORMATS, open_text
from hsae_lens.releases.sources import open_source
from hsae_lens.sae.from_stock import own_k, take_over
from hsae_lens.sae.inference_sae import ARCHITECTURE
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAE
from hsae_lens.training.checks import check_runner_settings
from hsae_lens.training.learning_rate import suggested_lr
from hsae_lens.training.recipe_flags import MODEL_DTYPE, known_flags, load_recipe, recipe_flags
from hsae_lens.training.runner import HierarchicalTopKTrainingRunner

logger = logging.getLogger(__name__)

FROM_PRETRAINED = ("--from-pretrained", "--from_pretrained")

ARCHITECTURE_FLAGS = ("--architecture", "--sae")  # SAELens' two names for one


def train_from_flags(arguments: Sequence[str]) -> TrainingSAE[Any]:
    """Trains as the flags say and returns the training SAE.

    Raises:
        ValueError: for an unknown recipe, a key that is no flag, bad values, or a
            ``--from-pretrained`` that cannot be gone on from.
        FileNotFoundError, ModelUnavailableError: if the text or the model is not there.
    """
    name, given = _split_off(arguments, *FROM_PRETRAINED)
    source = None if name is None else open_source(name)
    answered = [] if source is None else _flags_of(source)
    cfg, dtype = parse_train_flags(given, answered)
    sae = None if source is None else _begun_from(source, cfg)
    check_runner_settings(cfg)
    dataset = _open_local_data(cfg)
    model: Any = _open_local_model(cfg, dtype)
    try:
        runner = HierarchicalTopKTrainingRunner(
            cfg, override_dataset=dataset, override_model=model, override_sae=sae
        )
    except ConnectionError as error:
        raise ValueError(f"{error}. Check the network, or give a local folder.") from error
    return runner.run()


def _flags_of(source: SAE[Any]) -> list[str]:
    """Flags that the SAE to go on from answers, where the command line does not."""
    cfg, facts = source.cfg, source.cfg.metadata
    answers = {
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "k": own_k(source),
        "model_name": model_name_of(source),
        "hook_name": facts.hook_name,
        "context_size": facts.context_size,
        "prepend_bos": facts.prepend_bos,
    }
    return [f"--{flag}={value}" for flag, value in answers.items() if value is not None]


def _begun_from(
    source: SAE[Any], cfg: LanguageModelSAERunnerConfig[Any]
) -> HierarchicalTopKTrainingSAE:
    """The SAE to train, with the source's weights; the run's config becomes its.

    Raises:
        ValueError: if a setting asks for another architecture, another beginning, or what is the
            source's to say.
    """
    if cfg.sae.architecture() != ARCHITECTURE:
        raise ValueError(
            f"--from-pretrained begins a {ARCHITECTURE} SAE, not {cfg.sae.architecture()}; leave "
            "--architecture out, or use SAELens' --from_pretrained_path."
        )
    if cfg.from_pretrained_path is not None:
        raise ValueError("Give --from-pretrained or --from_pretrained_path, not both.")
    asked = {f.name: getattr(cfg.sae, f.name) for f in fields(cfg.sae)}
    theirs = {**take_over(source).settings, "device": asked["device"]}
    usual = {f.name: f.default for f in fields(cfg.sae)}
    for name, value in theirs.items():
        if asked[name] not in (value, usual[name]):
            raise ValueError(
                f"{name} {asked[name]} does not fit --from-pretrained: it has {value}."
            )
    own = {"b_dec_init", "decoder_init_norm", "metadata", "calibration", *theirs}
    sae = HierarchicalTopKTrainingSAE.from_sae(
        source, **{name: value for name, value in asked.items() if name not in own}
    )
    sae.cfg.device = cfg.sae.device
    cfg.sae = sae.cfg
    if cfg.seqpos_slice == (None,) and source.cfg.metadata.seqpos_slice:
        cfg.seqpos_slice = tuple(source.cfg.metadata.seqpos_slice)
    return sae


def parse_train_flags(
    arguments: Sequence[str], answered: Sequence[str] = ()
) -> tuple[LanguageModelSAERunnerConfig[Any], str | None]:
    """The runner's config, and the language model's dtype if one is asked for.

    SAELens' own parser reads every flag, the recipe's values too: they are put before the command
    line's, so that later ones win, and those that something else answers before both.

    Raises:
        ValueError: for an unknown recipe or flag (the nearest are said), or a bad value.
    """
    recipe, given = _split_off(arguments, "--recipe")
    architecture, _ = _split_off(given, *ARCHITECTURE_FLAGS)
    from_recipe: list[str] = []
    afterwards: dict[str, Any] = {}
    if recipe:
        values = load_recipe(recipe)
        architecture = architecture or values.get("architecture")
        from_recipe, afterwards = recipe_flags(values, known_flags(architecture or ARCHITECTURE))
    dtype, flags = _split_off([*from_recipe, *given], f"--{MODEL_DTYPE}")
    default = [] if architecture is not None else ["--architecture", ARCHITECTURE]
    cfg = _runner_config([*default, *answered, *flags])
    if _split_off(flags, "--lr")[0] is None:
        _suggest_lr(cfg)
    for name, value in afterwards.items():
        if _split_off(given, f"--{name}")[0] is None:
            setattr(cfg, name, value)
    validate_seqpos(seqpos=cfg.seqpos_slice, context_size=cfg.context_size)
    return cfg, dtype


def _split_off(arguments: Sequence[str], *names: str) -> tuple[str | None, list[str]]:
    """The last value of a flag, under any of its names, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*names, dest="value")
    try:
        parsed, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    return parsed.value, others


def _runner_config(flags: list[str]) -> LanguageModelSAERunnerConfig[Any]:
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
        if not leaving.code:  # --help
            raise
        complaint = said.getvalue().strip().split("\n")[-1].split("error: ")[-1]
        unknown = re.search(r"unrecognized arguments: --?([^\s=]+)", complaint)
        hint = did_you_mean(unknown[1], known_flags(ARCHITECTURE)) if unknown else ""
        raise ValueError(f"{complaint}.{hint}") from leaving


def _suggest_lr(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Sets the learning rate from the sizes and says so; of a resumed run the checkpoint has it."""
    if cfg.sae.architecture() != ARCHITECTURE or cfg.resume_from_checkpoint is not None:
        return
    former, cfg.lr = cfg.lr, suggested_lr(cfg.sae.d_sae, cfg.train_batch_size_tokens)
    if cfg.lr_end == former / 10:  # as SAELens makes it
        cfg.lr_end = cfg.lr / 10
    cfg.logger.run_name = (cfg.logger.run_name or "").replace(f"-LR-{former}-", f"-LR-{cfg.lr}-")
    logger.info(
        f"lr {cfg.lr:g}, suggested for {cfg.sae.d_sae} latents and batches of "
        f"{cfg.train_batch_size_tokens} tokens; --lr sets another."
    )


def _open_local_data(cfg: LanguageModelSAERunnerConfig[Any]) -> Dataset | IterableDataset | None:
    """Local text, or None for SAELens to fetch it from the hub."""
    name = cfg.dataset_path
    if not name:
        if cfg.use_cached_activations:
            return None
        raise ValueError("--dataset_path is missing: give local text, or a name on the hub.")
    if _looks_local(name, FORMATS) or Path(name).exists():
        return open_text(name, streaming=cfg.streaming)
    return None


def _open_local_model(
    cfg: LanguageModelSAERunnerConfig[Any], dtype: str | None
) -> HookedModel | None:
    """A model that SAELens could not open, or None for it to open the model (in that dtype)."""
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


def _looks_local(name: str, suffixes: Container[str] = ()) -> bool:
    """Whether a name is a path: the hub's are ``name`` or ``organisation/name``."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in suffixes
