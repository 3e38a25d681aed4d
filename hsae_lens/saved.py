"""Opens a trained SAE from wherever it is: a folder, or a release by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.util import str_to_dtype

from hsae_lens.devices import model_device
from hsae_lens.files import check_weights, expanded, explaining_bad_files
from hsae_lens.near import near
from hsae_lens.releases import RELEASES
from hsae_lens.sae import HierarchicalTopKSAE
from hsae_lens.sources import explaining_the_network, read_ready


def open_sae(where: str | Path, device: str = "cpu", dtype: str | None = None) -> SAE[Any]:
    """Any SAELens SAE, ready for inference.

    Args:
        where: a folder, or a release and an id as ``RELEASE/SAE_ID`` (ours or SAELens').
        dtype: of the weights; None for a folder's own, and float32 by name, as SAELens does.

    Raises:
        FileNotFoundError: if it is neither (the nearest names are said).
        ValueError: for an unknown device or dtype, or if it is damaged, or a checkpoint from the
            middle of training whose input scaling has not been folded into the weights yet.
        SAEUnavailableError: if it is on the hub and that cannot be reached.
    """
    device = str(model_device(device))
    if dtype is not None:
        str_to_dtype(dtype)
    folder = expanded(where)
    if not folder.exists():
        return _by_name(str(where), device, dtype or "float32")
    with explaining_bad_files(folder):
        sae: SAE[Any] = SAE.load_from_disk(folder, device=device, dtype=dtype, converter=read_ready)
        return _checked(sae)


def folder_of(where: str | Path) -> Path | None:
    """The folder an SAE is opened from, as :func:`open_sae` takes it; None if it is on the hub."""
    folder = expanded(where)
    if folder.exists():
        return folder
    for release in RELEASES.values():
        for sae_id, entry in release.saes.items():
            if release.local and str(where) == f"{release.name}/{sae_id}":
                return Path(release.source) / entry["path"]
    return None


def open_hierarchical(where: str | Path, device: str = "cpu") -> HierarchicalTopKSAE:
    """As :func:`open_sae`, and a ValueError if it is of another architecture."""
    sae = open_sae(where, device)
    if not isinstance(sae, HierarchicalTopKSAE):
        raise ValueError(f"{where} is a {sae.cfg.architecture()!r} SAE, not a hierarchical one.")
    return sae


def _by_name(name: str, device: str, dtype: str) -> SAE[Any]:
    directory = get_pretrained_saes_directory()
    for release, lookup in directory.items():
        sae_id = name.removeprefix(f"{release}/")
        if sae_id != name and sae_id in lookup.saes_map:
            with explaining_the_network(name):
                return _checked(SAE.from_pretrained(release, sae_id, device=device, dtype=dtype))
    ours = [f"{release.name}/{sae_id}" for release in RELEASES.values() for sae_id in release.saes]
    raise FileNotFoundError(
        f"No saved SAE at {name}, neither folder nor RELEASE/SAE_ID.{near(name, ours)}"
    )


def _checked(sae: SAE[Any]) -> SAE[Any]:
    """Weights of SAELens' own architectures; ours were checked as they were loaded."""
    if not isinstance(sae, HierarchicalTopKSAE):
        check_weights(sae, sae.state_dict())
    return sae
