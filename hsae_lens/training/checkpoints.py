"""What a checkpoint is made of, and whether one is whole and its weights are numbers.

``trainer`` writes them (``save_checkpoint``), ``runner`` on a signal (``_save_interrupted``).
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from safetensors import SafetensorError, safe_open

from hsae_lens.sae.saved_files import is_finite

CHECKPOINT_FILES = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
)
"""What a run goes on from."""


def missing_from_checkpoint(folder: str | Path) -> list[str]:
    """The files a run cannot go on without that a folder lacks, or that are cut short."""
    return [name for name in CHECKPOINT_FILES if not _is_whole(Path(folder) / name)]


def _is_whole(file: Path) -> bool:
    if file.suffix == ".pt":
        return zipfile.is_zipfile(file)  # torch.save writes the directory of its archive last
    with contextlib.suppress(SafetensorError, ValueError, OSError):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                return True
        json.loads(file.read_bytes())
        return True
    return False


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises FloatingPointError for weights that are not finite.

    A step looks at its loss; the weights that the last step leads to are looked at only here.
    """
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise FloatingPointError(
                f"{name} became NaN or infinite in training and was not saved. Earlier checkpoints "
                "are intact; go on from one with a smaller lr."
            )
