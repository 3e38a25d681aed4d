"""SAEs to start from: SAELens' own, and those that sparsify and dictionary_learning saved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from hsae_lens._util.paths import expand_home
from hsae_lens.models.devices import model_device
from hsae_lens.releases.foreign_saes import hookpoint_of, read_dictionary_learning, read_sparsify
from hsae_lens.releases.hub_loader import explaining_the_network
from hsae_lens.releases.opening import find_release, folder_of, nearest_releases, open_sae
from hsae_lens.sae.from_stock import check_source


class Kind(NamedTuple):
    """A way to save SAEs: the files that tell it, and what reads them (config, then weights)."""

    name: str
    config: str
    weights: tuple[str, ...]
    read: Callable[[Path, Path], SAE[Any]]


def _read_saelens(config: Path, _: Path) -> SAE[Any]:
    return open_sae(config.parent, dtype="float32")


SAELENS = Kind("SAELens", SAE_CFG_FILENAME, (SAE_WEIGHTS_FILENAME,), _read_saelens)
SPARSIFY = Kind("EleutherAI sparsify", SAE_CFG_FILENAME, ("sae.safetensors",), read_sparsify)
DICTIONARY_LEARNING = Kind(
    "dictionary_learning", "config.json", ("ae.safetensors", "ae.pt"), read_dictionary_learning
)
KINDS = (SAELENS, SPARSIFY, DICTIONARY_LEARNING)

READ_HERE = ("sparsify", "dictionary_learning_1")
"""SAELens' loaders of releases that are read here instead."""

ON_THE_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)/(.+?)/?")


def open_source(where: str | Path, device: str = "cpu") -> SAE[Any]:
    """An SAE that others trained and a hierarchical one can start from, in float32.

    Args:
        where: a folder that SAELens, EleutherAI's sparsify or dictionary_learning wrote;
            ``RELEASE/SAE_ID`` (ours or SAELens'); or ``OWNER/REPOSITORY/FOLDER`` on the hub.

    Returns:
        A stock TopK or JumpReLU SAE that computes what the library's own does, or one of ours. Its
        metadata holds model, hook, text and context size where the source says them, and
        ``converted_from`` and ``source_licence`` (None if unknown).

    Raises:
        FileNotFoundError: if there is none (the nearest names are said).
        ValueError: if the files are damaged, no order of activations fits the SAE, it has latents
            without a direction, or the device is unknown.
        SAEUnavailableError: if it is on the hub and that cannot be reached.
    """
    device = str(model_device(device))
    sae, kind, licence = _open(where)
    try:
        check_source(sae)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    metadata = sae.cfg.metadata
    before = metadata.converted_from  # of an SAE that was converted: both stay known
    metadata.converted_from = f"{kind}: {where}" + (f", converted from {before}" if before else "")
    metadata.source_licence = licence or metadata.source_licence
    return sae.to(device)


def _open(where: str | Path) -> tuple[SAE[Any], str, str | None]:
    """The SAE, how it was saved, and its licence."""
    name, folder = str(where), expand_home(where).absolute()
    if folder.exists():
        if (found := _files_in(folder)) is None:
            raise FileNotFoundError(f"No saved SAE at {where}: it is {_looked_for()}.")
        kind, config, weights = found
        return kind.read(config, weights), kind.name, _licence_beside(folder)
    if release := find_release(name):
        lookup = get_pretrained_saes_directory()[release[0]]
        if lookup.conversion_func not in READ_HERE:
            here = folder_of(where)
            sae = open_sae(where, dtype="float32")
            licence = _licence_beside(here) if here else _licence_on_hub(lookup.repo_id)
            return sae, SAELENS.name, licence
        name = f"{lookup.repo_id}/{lookup.saes_map[release[1]]}"
    if place := ON_THE_HUB.fullmatch(name):
        with explaining_the_network(f"{name} (no folder here, so OWNER/REPOSITORY/FOLDER)"):
            if found := _files_on_hub(*place.groups()):
                kind, config, weights = found
                return kind.read(config, weights), kind.name, _licence_on_hub(place[1])
    raise FileNotFoundError(
        f"No saved SAE at {where}: neither RELEASE/SAE_ID nor OWNER/REPOSITORY/FOLDER on the hub "
        f"(if private: hf auth login), and it is {_looked_for()}.{nearest_releases(name)}"
    )


def _looked_for() -> str:
    files = (f"{k.config} and {' or '.join(k.weights)} ({k.name})" for k in KINDS)
    return f"no folder with {', '.join(files)}"


def _files_in(folder: Path) -> tuple[Kind, Path, Path] | None:
    for kind in KINDS:
        for weights in kind.weights:
            if (folder / kind.config).is_file() and (folder / weights).is_file():
                return kind, folder / kind.config, folder / weights
    return None


def _files_on_hub(repo_id: str, folder: str) -> tuple[Kind, Path, Path] | None:
    """As :func:`_files_in`, downloaded; None if the hub has no such repository or folder."""
    unreachable = None
    for kind in KINDS:
        for weights in kind.weights:
            try:
                files = [_download(repo_id, f"{folder}/{n}") for n in (kind.config, weights)]
            except LocalEntryNotFoundError as error:  # of another kind, it may be in the cache
                unreachable = error
            except (RepositoryNotFoundError, HFValidationError):
                return None
            except EntryNotFoundError:
                continue
            else:
                if kind is SPARSIFY:
                    run = hookpoint_of(Path(folder, kind.config)).parent
                    _download_if_there(repo_id, (run / "config.json").as_posix())
                return kind, files[0], files[1]
    if unreachable:
        raise unreachable
    return None


def _download(repo_id: str, path: str) -> Path:
    return Path(hf_hub_download(repo_id, path))


def _download_if_there(repo_id: str, path: str) -> Path | None:
    try:
        return _download(repo_id, path)
    except (EntryNotFoundError, HTTPError, OSError):
        return None


def _licence_on_hub(repo_id: str) -> str | None:
    card = _download_if_there(repo_id, "README.md")
    return _licence_in(card) if card else None


def _licence_beside(folder: Path) -> str | None:
    return _licence_in(folder / "README.md") or _licence_in(folder.parent / "README.md")


def _licence_in(card: Path) -> str | None:
    """``license`` in the YAML at the top of a card; None without."""
    try:
        header = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        facts = yaml.safe_load(header[1]) if header else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence = facts.get("license") if isinstance(facts, dict) else None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence and str(licence)
