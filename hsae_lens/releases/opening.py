"""Opens a trained SAE: by the name of its release, from a hub repository, or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.util import str_to_dtype

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home
from hsae_lens.models.devices import model_device
from hsae_lens.objective.budgets import Budget
from hsae_lens.releases import hub_loader
from hsae_lens.releases.directory import RELEASES, fill_saelens_directory
from hsae_lens.releases.hub_loader import explaining_the_network, read_ready
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE
from hsae_lens.sae.saved_files import check_weights, explaining_bad_files


def load_pretrained(
    release: str,
    sae_id: str,
    k: Budget | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
) -> HierarchicalTopKSAE:
    """A released hierarchical SAE at budget ``k``; ``SAE.from_pretrained`` with a budget.

    Args:
        release: a name from ``hsae releases``, or any Hugging Face repository "owner/name".
        sae_id: the SAE in it, usually its hook name.
        k: the budget to start with, in 1..cfg.k, or a :class:`MeanBudget` or :class:`ErrorTarget`;
            None for the SAE's own default.
        device, dtype: of the weights.

    A training checkpoint is made ready or refused, as by :func:`open_sae`.

    Raises:
        ValueError: for an unknown name (the nearest are said), another architecture, ``k`` outside
            the trained budgets, an unknown device or dtype, or damaged weights.
        SAEUnavailableError: if the files cannot be reached.
    """
    fill_saelens_directory()
    directory = get_pretrained_saes_directory()
    if release not in directory and "/" not in release:
        raise ValueError(
            f"Unknown release {release!r}.{did_you_mean(release, directory)} "
            "`hsae releases` lists ours."
        )
    if release in directory and sae_id not in directory[release].saes_map:
        ids = directory[release].saes_map
        raise ValueError(f"{release} has no SAE {sae_id!r}.{did_you_mean(sae_id, ids)}")
    dtype = str(dtype).removeprefix("torch.")
    with hub_loader.explaining_the_network(release):
        sae = SAE.from_pretrained(
            release,
            sae_id,
            device=str(device),
            dtype=dtype,
            # A repository without a name is read as ours are.
            converter=None if release in directory else hub_loader.load_files,
        )
    if not isinstance(sae, HierarchicalTopKSAE):
        raise ValueError(
            f"{release} {sae_id} is a {sae.cfg.architecture()!r} SAE, which has no order; load it "
            "with SAE.from_pretrained."
        )
    if k is not None:
        sae.budget = k
    return sae


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
    folder = expand_home(where)
    if not folder.exists():
        return _by_name(str(where), device, dtype or "float32")
    with explaining_bad_files(folder):
        sae: SAE[Any] = SAE.load_from_disk(folder, device=device, dtype=dtype, converter=read_ready)
        return _checked(sae)


def folder_of(where: str | Path) -> Path | None:
    """The folder an SAE is opened from, as :func:`open_sae` takes it; None if it is on the hub."""
    folder = expand_home(where)
    if folder.exists():
        return folder
    for release in RELEASES.values():
        for sae_id, entry in release.saes.items():
            if release.local and str(where) == f"{release.name}/{sae_id}":
                return Path(release.source) / entry["path"]
    return None


def open_hierarchical(
    where: str | Path, device: str = "cpu", dtype: str | None = None
) -> HierarchicalTopKSAE:
    """As :func:`open_sae`, and a ValueError if it is of another architecture."""
    sae = open_sae(where, device, dtype)
    if not isinstance(sae, HierarchicalTopKSAE):
        raise ValueError(f"{where} is a {sae.cfg.architecture()!r} SAE, not a hierarchical one.")
    return sae


def find_release(name: str) -> tuple[str, str] | None:
    """The release and the id that ``RELEASE/SAE_ID`` names, ours or SAELens'; None if neither."""
    for release, lookup in get_pretrained_saes_directory().items():
        sae_id = name.removeprefix(f"{release}/")
        if sae_id != name and sae_id in lookup.saes_map:
            return release, sae_id
    return None


def nearest_releases(name: str) -> str:
    """What an error about an unknown ``RELEASE/SAE_ID`` adds: those of ours it may have meant."""
    ours = [f"{release.name}/{sae_id}" for release in RELEASES.values() for sae_id in release.saes]
    return did_you_mean(name, ours)


def _by_name(name: str, device: str, dtype: str) -> SAE[Any]:
    if found := find_release(name):
        with explaining_the_network(name):
            return _checked(SAE.from_pretrained(*found, device=device, dtype=dtype))
    raise FileNotFoundError(
        f"No saved SAE at {name}, neither folder nor RELEASE/SAE_ID.{nearest_releases(name)}"
    )


def _checked(sae: SAE[Any]) -> SAE[Any]:
    """Weights of SAELens' own architectures; ours were checked as they were loaded."""
    if not isinstance(sae, HierarchicalTopKSAE):
        check_weights(sae, sae.state_dict())
    return sae
