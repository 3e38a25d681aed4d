"""Reads a released SAE's files, from a folder or the hub, and refuses wrong ones.

:func:`load_files` and :func:`load_config` have the signatures of SAELens' pretrained loaders; what
they need to know of a release comes in its ``config_overrides``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import (
    get_sae_lens_config_from_disk,
    get_sae_lens_config_from_hf,
    sae_lens_disk_loader,
)
from sae_lens.util import str_to_dtype
from safetensors import safe_open

from hsae_lens._util.unavailable import SAEUnavailableError
from hsae_lens.models.devices import model_device
from hsae_lens.sae.inference_sae import ARCHITECTURE
from hsae_lens.sae.normalization import NORMALIZATIONS
from hsae_lens.sae.saved_files import check_weights, explaining_bad_files, read_config

FACTS_KEY = "hsae_lens"

PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npz")

ONLY_SAFETENSORS = (
    f"Only safetensors are read (pickles can run code): save the SAE with save_model, which writes "
    f"{SAE_WEIGHTS_FILENAME}."
)

State = dict[str, torch.Tensor]

Loaded = tuple[dict[str, Any], State, torch.Tensor | None]


def overrides_for_loader(local: bool, checksums: dict[str, str]) -> dict[str, Any]:
    """What a release's ``config_overrides`` must hold: its kind and SHA-256 by SAE path."""
    return {FACTS_KEY: {"local": local, "sha256": checksums}}


def load_files(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> Loaded:
    """Config and weights of one SAE, its checksum verified first (no log sparsity: None).

    A training checkpoint is made ready as :func:`read_ready` does.

    Raises:
        ValueError: for an unknown device or dtype, or weights that are damaged, not those of the
            release, of a checkpoint that cannot be made ready, or pickled.
        FileNotFoundError: if the folder is not a saved SAE.
        SAEUnavailableError: if the hub has no such files or cannot be reached.
    """
    overrides = dict(cfg_overrides or {})
    release = overrides.pop(FACTS_KEY, overrides_for_loader(local=False, checksums={})[FACTS_KEY])
    sha256 = release["sha256"].get(folder_name)
    device = str(model_device(device))
    if "dtype" in overrides:
        str_to_dtype(overrides["dtype"])
    if release["local"]:
        folder = Path(repo_id) / folder_name
        _refuse_pickles(folder)
        return _read(folder, folder / SAE_WEIGHTS_FILENAME, sha256, device, overrides)
    with explaining_the_network(f"{repo_id}/{folder_name}"):
        cfg, weights = (
            Path(hf_hub_download(repo_id, f"{folder_name}/{name}", force_download=force_download))
            for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)
        )
        # These very files: asking the hub once more could bring others.
        return _read(cfg.parent, weights, sha256, device, overrides)


def _read(
    cfg_folder: Path, weights: Path, sha256: str | None, device: str, overrides: dict[str, Any]
) -> Loaded:
    if weights.is_file():
        _verify(weights, sha256)
    with explaining_bad_files(cfg_folder, weights):
        cfg = get_sae_lens_config_from_disk(cfg_folder, device, overrides)
        dtype, state = str_to_dtype(cfg["dtype"]), {}
        with safe_open(weights, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            # Opened for each tensor: closing gives back the pages of the one before.
            with safe_open(weights, framework="pt", device=device) as file:
                state[name] = file.get_tensor(name).to(dtype)
        return *_made_ready(cfg, state, cfg_folder), None


def read_ready(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], State]:
    """SAELens' loader of a folder (``converter``) that makes a training checkpoint ready for use.

    Raises:
        ValueError: for a checkpoint from the middle of training whose input scaling has not been
            folded into the weights yet.
    """
    cfg, state = sae_lens_disk_loader(path, device, cfg_overrides)
    return _made_ready(cfg, state, Path(path))


def _made_ready(cfg: dict[str, Any], state: State, folder: Path) -> tuple[dict[str, Any], State]:
    """As SAELens saves for inference: scaling folded already, and our decoder norms folded here."""
    normalisation = read_config(folder)["normalize_activations"]
    if NORMALIZATIONS[normalisation].folded_at_the_end:
        raise ValueError(
            f"{folder} is a training checkpoint: the scaling of its input ({normalisation}) is not "
            "folded into the weights yet. Take the folder that the finished run wrote "
            "(output_path)."
        )
    if cfg.get("architecture") == ARCHITECTURE and cfg.get("rescale_acts_by_decoder_norm"):
        check_weights(SAE.from_dict({**cfg, "device": "meta"}), state)
        norms = state["W_dec"].norm(dim=-1).clamp(min=1e-8)  # SAELens' fold_W_dec_norm
        state["W_dec"].div_(norms[:, None])
        state["W_enc"].mul_(norms)
        state["b_enc"].mul_(norms)
        cfg = {**cfg, "rescale_acts_by_decoder_norm": False}
    return cfg, state


def load_config(
    repo_id: str,
    folder_name: str,
    device: str | None = None,
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The config of one SAE without its weights. Raises as :func:`load_files`."""
    overrides = dict(cfg_overrides or {})
    if overrides.pop(FACTS_KEY)["local"]:
        folder = Path(repo_id) / folder_name
        with explaining_bad_files(folder):
            return get_sae_lens_config_from_disk(folder, device, overrides)
    with explaining_the_network(f"{repo_id}/{folder_name}"):
        return get_sae_lens_config_from_hf(repo_id, folder_name, device, force_download, overrides)


def config_at_hand(source: str, path: str, local: bool) -> dict[str, Any] | None:
    """The config if it is here, else None.

    Raises:
        ValueError: if it is damaged.
    """
    file: Any = Path(source) / path / SAE_CFG_FILENAME
    if not local:
        file = try_to_load_from_cache(source, f"{path}/{SAE_CFG_FILENAME}")
    if not isinstance(file, str | Path) or not Path(file).exists():
        return None
    return read_config(Path(file).parent)


def checksum(file: str | Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _verify(weights: Path, sha256: str | None) -> None:
    if sha256 is not None and (found := checksum(weights)) != sha256:
        raise ValueError(
            f"{weights} is not the file of the release: its SHA-256 is {found[:12]}…, not "
            f"{sha256[:12]}…. It is damaged or was replaced: get it again (force_download=True for "
            "a hub file, or reinstall hsae_lens for its own)."
        )


def _refuse_pickles(folder: Path) -> None:
    if not folder.is_dir() or (folder / SAE_WEIGHTS_FILENAME).exists():
        return
    if pickled := sorted(f.name for f in folder.iterdir() if f.suffix in PICKLED):
        raise ValueError(f"{folder} holds {', '.join(pickled)}. {ONLY_SAFETENSORS}")


@contextmanager
def explaining_the_network(what: str) -> Iterator[None]:
    """Turns the hub client's errors into one that says what to do."""
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise SAEUnavailableError(
            f"{what} is not in the local cache and the Hugging Face hub cannot be reached. Check "
            "the network and HF_HUB_OFFLINE, or use a release in the package (`hsae releases`)."
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise SAEUnavailableError(
            f"The Hugging Face hub has no {what} with {SAE_CFG_FILENAME} and "
            f"{SAE_WEIGHTS_FILENAME}, or it is private (hf auth login). {ONLY_SAFETENSORS}"
        ) from error
    except HTTPError as error:
        raise SAEUnavailableError(
            f"The Hugging Face hub cannot be reached for {what} or refused it: {error}"
        ) from error
