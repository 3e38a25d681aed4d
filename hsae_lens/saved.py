"""Opens a trained SAE from wherever it is: a folder, or a release by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from hsae_lens.files import explaining_bad_files
from hsae_lens.near import near
from hsae_lens.releases import RELEASES
from hsae_lens.sae import HierarchicalTopKSAE
from hsae_lens.sources import explaining_the_network

FOLDED_AT_THE_END = ("expected_average_only_in", "covariance_whitening")


def open_sae(where: str | Path, device: str = "cpu", dtype: str | None = None) -> SAE[Any]:
    """Any SAELens SAE, ready for inference.

    Args:
        where: a folder, or a release and an id as ``RELEASE/SAE_ID`` (ours or SAELens').
        dtype: of the weights; None for a folder's own, and float32 by name, as SAELens does.

    Raises:
        FileNotFoundError: if it is neither (the nearest names are said).
        ValueError: if it is damaged, or a checkpoint from the middle of training whose input
            scaling has not been folded into the weights yet.
        SAEUnavailableError: if it is on the hub and that cannot be reached.
    """
    if not Path(where).exists():
        return _by_name(str(where), device, dtype or "float32")
    with explaining_bad_files(where):
        sae: SAE[Any] = SAE.load_from_disk(where, device=device, dtype=dtype)
    if sae.cfg.normalize_activations in FOLDED_AT_THE_END:
        raise ValueError(
            f"{where} is a training checkpoint: the scaling of its input is not folded into the "
            "weights yet. Take the folder that the finished run wrote (output_path)."
        )
    if isinstance(sae, HierarchicalTopKSAE) and sae.cfg.rescale_acts_by_decoder_norm:
        sae.fold_W_dec_norm()  # a training checkpoint
        sae.cfg.rescale_acts_by_decoder_norm = False
    return sae


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
                return SAE.from_pretrained(release, sae_id, device=device, dtype=dtype)
    ours = [f"{release.name}/{sae_id}" for release in RELEASES.values() for sae_id in release.saes]
    raise FileNotFoundError(
        f"No saved SAE at {name}, neither folder nor RELEASE/SAE_ID.{near(name, ours)}"
    )
