"""A trained SAE for others: uploaded to the hub with a card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.training.upload_saes_to_huggingface import upload_saes_to_huggingface

from hsae_lens.releases.entries import make_release
from hsae_lens.releases.hub_loader import checksum, explaining_the_network
from hsae_lens.releases.model_card import HUB_HEADER, release_entry, write_card
from hsae_lens.releases.opening import open_hierarchical


def publish_sae(
    where: str | Path,
    repo_id: str,
    sae_id: str | None = None,
    release: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> tuple[str, str]:
    """Uploads an SAE's inference form with a card, through SAELens' own uploader.

    The repository is made if it does not exist. The card goes beside the weights and, if there is
    none yet, to the top of the repository.

    Args:
        where: a folder with a saved SAE, or ``RELEASE/SAE_ID``.
        repo_id: the Hugging Face repository, "owner/name".
        sae_id: its folder there and its id in the release; None for its hook's name.
        release: the release's name in the entry to paste; None for the repository's.
        dry_run: makes the card and the entry, asks and uploads nothing.
        overwrite: whether another SAE that the repository holds under that id may be replaced.

    Returns:
        The card and the release entry (YAML for :func:`hsae_lens.releases.directory.user_file`).

    Raises:
        ValueError: if the repository holds another SAE under that id.
        SAEUnavailableError: if the hub cannot be reached or refuses. See also :func:`open_sae`.
    """
    sae = open_hierarchical(where)
    metadata = sae.cfg.metadata
    if not (metadata.model_name and metadata.hook_name):
        raise ValueError(f"{where} does not say its model_name and hook_name; set its metadata.")
    sae_id = sae_id or str(metadata.hook_name)
    name = release or repo_id.split("/")[-1]
    make_release(name, metadata.model_name, [{"id": sae_id, "path": sae_id}], repo_id, None)
    card = write_card(sae, repo_id, sae_id)
    with tempfile.TemporaryDirectory() as beside:
        weights, _ = sae.save_model(Path(beside) / "sae")
        sha256 = checksum(weights)
        entry = release_entry(name, metadata.model_name, sae_id, sae_id, sha256, repo_id=repo_id)
        if not dry_run:
            with explaining_the_network(repo_id):
                if not overwrite and _weights_on_the_hub(repo_id, sae_id) not in (None, sha256):
                    raise ValueError(
                        f"{repo_id} holds another SAE under {sae_id}. Give another id "
                        "(--sae-id), or overwrite it (--overwrite)."
                    )
                upload_saes_to_huggingface(
                    {sae_id: weights.parent}, repo_id, add_default_readme=False
                )
                _upload_card(HUB_HEADER + card, repo_id, sae_id)
    return card, entry


def _weights_on_the_hub(repo_id: str, sae_id: str) -> str | None:
    """What tells the weights there from others, SHA-256 as for all large files; None for none."""
    try:
        url = hf_hub_url(repo_id, f"{sae_id}/{SAE_WEIGHTS_FILENAME}")
        return get_hf_file_metadata(url).etag
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None


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
