"""A release: some trained SAEs for one model, and the entry that describes it.

An entry is written as in SAELens' own ``pretrained_saes.yaml``, with ``folder`` instead of
``repo_id`` for local files and an optional ``sha256`` of the weights:

    my-saes:
      model: google/gemma-2-2b
      folder: ./saes                  # or repo_id: me/my-saes; relative to this file
      saes:
      - id: blocks.12.hook_resid_post
        path: layer-12                # holds cfg.json and sae_weights.safetensors
        sha256: 6a2f…                 # optional: a damaged or swapped file is then refused
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.utils import validate_repo_id

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home
from hsae_lens._util.yaml_files import read_yaml
from hsae_lens.releases.hub_loader import ONLY_SAFETENSORS, PICKLED

RELEASE_KEYS = {"model", "saes", "repo_id", "folder"}

SAE_KEYS = {"id", "path", "sha256", "l0", "variance_explained", "neuronpedia"}


@dataclass(frozen=True)
class Release:
    """Where the SAEs of a release are. ``source`` is a folder if ``local``, else a hub repository.

    saes: by id, the keys of an entry: ``path`` and perhaps ``sha256``, ``l0``, ….
    """

    name: str
    model: str
    source: str
    local: bool
    saes: dict[str, dict[str, Any]]


def read_releases(file: str | Path) -> list[Release]:
    """The releases a YAML file describes; relative folders are relative to the file.

    Raises:
        ValueError: if it is no YAML, names a release twice, or an entry has missing or unknown
            keys.
    """
    file = Path(file)
    table = read_yaml(file)
    if table is None:
        return []
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise ValueError(f"{file} must map release names to their entries (model, saes, …).")
    releases = []
    for name, entry in table.items():
        _check_keys(entry, RELEASE_KEYS, {"model", "saes"}, f"{file}: release {name!r}")
        folder = entry.get("folder")
        if folder is not None:
            folder = file.parent.absolute() / expand_home(
                _text(folder, f"release {name!r}: folder")
            )
        releases.append(
            make_release(str(name), entry["model"], entry["saes"], entry.get("repo_id"), folder)
        )
    return releases


def make_release(
    name: str,
    model: str,
    saes: Sequence[Mapping[str, Any]],
    repo_id: str | None,
    folder: str | Path | None,
) -> Release:
    """A release made of these, if they are sound.

    Raises:
        ValueError: for missing or unknown keys, a path that leaves its folder or names pickled
            weights, or a source that is not one.
    """
    where = f"release {name!r}"
    _text(model, f"{where}: model")
    if (repo_id is None) == (folder is None):
        raise ValueError(f"{where} needs either repo_id or folder, one of the two.")
    by_id = _by_id(saes, where)
    if folder is not None:
        return Release(name, model, str(expand_home(folder).absolute()), True, by_id)
    repo_id = _text(repo_id, f"{where}: repo_id")
    if "/" not in repo_id:
        raise ValueError(f"{where}: repo_id must be owner/name, got {repo_id!r}.")
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Release(name, model, repo_id, False, by_id)


def _by_id(saes: Sequence[Mapping[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """The entries of a release's SAEs, checked."""
    if not isinstance(saes, Sequence) or isinstance(saes, str) or not saes:
        raise ValueError(f"{where} needs a list of saes, each with id and path, got {saes!r}.")
    by_id: dict[str, dict[str, Any]] = {}
    for entry in saes:
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where}: an SAE must be a mapping with id and path, got {entry!r}.")
        _check_keys(entry, SAE_KEYS, {"id", "path"}, where)
        keys = {**entry, "id": str(entry["id"]), "path": str(entry["path"])}
        _check_path(keys["path"], f"{where}, SAE {keys['id']!r}")
        if keys.get("sha256") is not None:
            keys["sha256"] = str(keys["sha256"]).lower()
            if not re.fullmatch("[0-9a-f]{64}", keys["sha256"]):
                raise ValueError(f"{where}, SAE {keys['id']!r}: sha256 must be 64 hex digits.")
        if keys["id"] in by_id:
            raise ValueError(f"{where} lists the SAE {keys['id']!r} twice.")
        by_id[keys["id"]] = keys
    return by_id


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a text, got {value!r}.")
    return value


def _check_keys(entry: Mapping[str, Any], known: set[str], needed: set[str], where: str) -> None:
    if unknown := [str(key) for key in entry if key not in known]:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}.{did_you_mean(unknown[0], sorted(known))}"
        )
    if missing := sorted(key for key in needed if entry.get(key) in (None, "")):
        raise ValueError(f"{where}: {' and '.join(missing)} missing.")


def _check_path(path: str, where: str) -> None:
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in path:
        raise ValueError(f"{where}: the path {path!r} leaves the release's folder.")
    if parts.suffix in PICKLED:
        raise ValueError(f"{where}: {path} names pickled weights. {ONLY_SAFETENSORS}")
