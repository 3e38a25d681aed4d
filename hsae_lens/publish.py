"""Trained SAEs for others: uploaded to the hub, or exported as stock SAELens SAEs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from sae_lens.training.upload_saes_to_huggingface import upload_saes_to_huggingface

from hsae_lens.card import HUB_HEADER, release_entry, write_card
from hsae_lens.files import saved_whole
from hsae_lens.releases import RELEASES, load_pretrained, near
from hsae_lens.sae import HierarchicalTopKSAE
from hsae_lens.sources import checksum, explaining_the_network

FOLDED_AT_THE_END = ("expected_average_only_in", "covariance_whitening")


def open_sae(where: str | Path) -> HierarchicalTopKSAE:
    """A hierarchical SAE from a folder, or by name as ``RELEASE/SAE_ID``, ready for inference.

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if it is another architecture, damaged, or a checkpoint from the middle of
            training whose input scaling has not been folded into the weights yet.
    """
    for name in RELEASES:
        if str(where).startswith(f"{name}/"):
            return load_pretrained(name, str(where).removeprefix(f"{name}/"))
    if not Path(where).exists():
        names = [f"{r.name}/{sae_id}" for r in RELEASES.values() for sae_id in r.saes]
        hint = near(str(where), names)
        raise FileNotFoundError(
            f"No saved SAE at {where}, neither folder nor RELEASE/SAE_ID.{hint}"
        )
    sae = HierarchicalTopKSAE.load_from_disk(where)
    if sae.cfg.normalize_activations in FOLDED_AT_THE_END:
        raise ValueError(
            f"{where} is a training checkpoint: the scaling of its input is not folded into the "
            "weights yet. Take the folder that the finished run wrote (output_path)."
        )
    if sae.cfg.rescale_acts_by_decoder_norm:  # a training checkpoint
        sae.fold_W_dec_norm()
        sae.cfg.rescale_acts_by_decoder_norm = False
    return sae


def export(where: str | Path, k: int, out: str | Path) -> Path:
    """Writes a stock SAELens TopK SAE at budget ``k``, which loads without this package.

    Returns:
        The folder ``out``.

    Raises:
        ValueError: if ``k`` is outside the trained budgets. See also :func:`open_sae`.
    """
    saved_whole(open_sae(where).at_k(k).save_model, out)
    return Path(out)


def publish(
    where: str | Path,
    repo_id: str,
    sae_id: str | None = None,
    release: str | None = None,
    dry_run: bool = False,
) -> tuple[str, str]:
    """Uploads an SAE's inference form with a card, through SAELens' own uploader.

    The repository is made if it does not exist. The card goes beside the weights and, if there is
    none yet, to the top of the repository.

    Args:
        where: a folder with a saved SAE, or ``RELEASE/SAE_ID``.
        repo_id: the Hugging Face repository, "owner/name".
        sae_id: its folder there and its id in the release; None for its hook's name.
        release: the release's name in the entry to paste; None for the repository's.
        dry_run: makes the card and the entry, uploads nothing.

    Returns:
        The card and the release entry (YAML for :func:`hsae_lens.releases.user_file`).

    Raises:
        SAEUnavailableError: if the hub cannot be reached or refuses. See also :func:`open_sae`.
    """
    sae = open_sae(where)
    metadata = sae.cfg.metadata
    if not (metadata.model_name and metadata.hook_name):
        raise ValueError(f"{where} does not say its model_name and hook_name; set its metadata.")
    sae_id = sae_id or str(metadata.hook_name)
    card = write_card(sae, repo_id, sae_id)
    with tempfile.TemporaryDirectory() as beside:
        weights, _ = sae.save_model(Path(beside) / "sae")
        name = release or repo_id.split("/")[-1]
        entry = release_entry(
            name, metadata.model_name, sae_id, sae_id, checksum(weights), repo_id=repo_id
        )
        if not dry_run:
            with explaining_the_network(repo_id):
                upload_saes_to_huggingface(
                    {sae_id: weights.parent}, repo_id, add_default_readme=False
                )
                _upload_card(HUB_HEADER + card, repo_id, sae_id)
    return card, entry


def _upload_card(card: str, repo_id: str, sae_id: str) -> None:
    api, content = HfApi(), card.encode()
    places = [f"{sae_id}/README.md"]
    if not api.file_exists(repo_id, "README.md"):
        places.append("README.md")
    for place in places:
        api.upload_file(
            path_or_fileobj=content,
            path_in_repo=place,
            repo_id=repo_id,
            commit_message=f"Card of {sae_id}",
        )
