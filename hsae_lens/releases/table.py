"""Names for trained SAEs: a table of releases that SAELens' ``SAE.from_pretrained`` also reads.

A release names a model and some SAEs for it, in a folder or a Hugging Face repository. An entry is
written as in SAELens' own ``pretrained_saes.yaml``, with ``folder`` instead of ``repo_id`` for
local files and an optional ``sha256`` of the weights:

    my-saes:
      model: google/gemma-2-2b
      folder: ./saes                  # or repo_id: me/my-saes; relative to this file
      saes:
      - id: blocks.12.hook_resid_post
        path: layer-12                # holds cfg.json and sae_weights.safetensors
        sha256: 6a2f…                 # optional: a damaged or swapped file is then refused

The table in the package, then the user's own file (:func:`user_file`), are read on import;
:func:`register_release` adds one from code.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.utils import validate_repo_id
from sae_lens.loading.pretrained_sae_loaders import (
    NAMED_PRETRAINED_SAE_CONFIG_GETTERS,
    NAMED_PRETRAINED_SAE_LOADERS,
)
from sae_lens.loading.pretrained_saes_directory import (
    PretrainedSAELookup,
    get_pretrained_saes_directory,
)

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home
from hsae_lens._util.yaml_files import read_yaml
from hsae_lens.releases import hub_loader

TABLE = Path(__file__).with_name("releases.yaml")

LOADER = "hsae_lens"  # our name among SAELens' conversion functions

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


RELEASES: dict[str, Release] = {}
"""By name, in the order they were registered."""


def register_release(
    name: str,
    *,
    model: str,
    saes: Sequence[Mapping[str, Any]],
    repo_id: str | None = None,
    folder: str | Path | None = None,
) -> Release:
    """Makes SAEs loadable by name, here and through SAELens, for the rest of this process.

    To keep a release, put the same keys into the user's file (:func:`user_file`).

    Args:
        name: what ``SAE.from_pretrained`` will call it.
        model: the language model, for people and tools to read.
        saes: one mapping per SAE: ``id`` and ``path`` (of its folder inside the source), optionally
            ``sha256`` of the weights, and SAELens' ``l0``, ``variance_explained``, ``neuronpedia``.
        repo_id: a Hugging Face repository "owner/name", or
        folder: a local folder.

    Returns:
        The release. Registering the same again is harmless.

    Raises:
        ValueError: for missing or unknown keys, a path that leaves its folder or names pickled
            weights, or a name that is taken by another release. Nothing is registered then.
    """
    release = validated_release(name, model, saes, repo_id, folder)
    _add([release])
    return release


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
            validated_release(
                str(name), entry["model"], entry["saes"], entry.get("repo_id"), folder
            )
        )
    return releases


def user_file() -> Path:
    """Where the user's own releases are read from.

    ``HSAE_RELEASES`` if set, else ``releases.yaml`` in ``hsae_lens`` under ``XDG_CONFIG_HOME``
    (``~/.config``; on Windows ``%APPDATA%``).

    Raises:
        ValueError: if the home directory is unknown.
    """
    if named := os.environ.get("HSAE_RELEASES"):
        return expand_home(named)
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or "~"
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return expand_home(base) / "hsae_lens" / "releases.yaml"


def read_tables() -> None:
    """Registers the package's releases and the user's. Called on import.

    A broken user file must not keep anybody from importing the package: it is a warning, and
    ``hsae releases`` makes it an error.
    """
    _add(read_releases(TABLE))
    try:
        read_user_file()
    except (ValueError, OSError) as error:
        warnings.warn(f"hsae_lens did not read your releases: {error}", stacklevel=3)


def read_user_file() -> None:
    """Registers the releases of :func:`user_file`, all of them or none.

    Raises:
        ValueError: what is wrong with the file.
    """
    if user_file().exists() or os.environ.get("HSAE_RELEASES"):
        _add(read_releases(user_file()))


def validated_release(
    name: str,
    model: str,
    saes: Sequence[Mapping[str, Any]],
    repo_id: str | None,
    folder: str | Path | None,
) -> Release:
    """A release made of these, if they are sound; see :func:`register_release`."""
    where = f"release {name!r}"
    _text(model, f"{where}: model")
    if (repo_id is None) == (folder is None):
        raise ValueError(f"{where} needs either repo_id or folder, one of the two.")
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
    if parts.suffix in hub_loader.PICKLED:
        raise ValueError(f"{where}: {path} names pickled weights. {hub_loader.ONLY_SAFETENSORS}")


def _add(releases: Sequence[Release]) -> None:
    """Registers all of them or, if a name is taken, none."""
    with _no_garbage_collection():
        directory = get_pretrained_saes_directory()
    for release in releases:
        known = RELEASES.get(release.name)
        if known != release and (known or release.name in directory):
            owner = known.source if known else f"SAELens ({directory[release.name].repo_id})"
            raise ValueError(
                f"The release name {release.name!r} is taken, by {owner}. Take another name, or "
                "list all SAEs of a release in one entry."
            )
    RELEASES.update({release.name: release for release in releases})
    merge_into_saelens()


def merge_into_saelens() -> None:
    """Puts our releases into SAELens' directory, where they may be missing after a cache_clear."""
    directory = get_pretrained_saes_directory()
    for release in RELEASES.values():
        directory.setdefault(release.name, _lookup(release))
    NAMED_PRETRAINED_SAE_LOADERS[LOADER] = hub_loader.load_files
    NAMED_PRETRAINED_SAE_CONFIG_GETTERS[LOADER] = hub_loader.load_config


def _lookup(release: Release) -> PretrainedSAELookup:
    saes = release.saes
    return PretrainedSAELookup(
        release=release.name,
        repo_id=release.source,
        model=release.model,
        conversion_func=LOADER,
        saes_map={sae_id: entry["path"] for sae_id, entry in saes.items()},
        # As SAELens fills them in where its own table is silent.
        expected_var_explained={i: e.get("variance_explained", 1.0) for i, e in saes.items()},
        expected_l0={i: e.get("l0", 0.0) for i, e in saes.items()},
        neuronpedia_id={i: e.get("neuronpedia") for i, e in saes.items()},
        norm_scaling_factor={},
        config_overrides=hub_loader.loader_facts(
            release.local, {e["path"]: e["sha256"] for e in saes.values() if "sha256" in e}
        ),
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """SAELens parses its table of 1.5 MB here: a second longer if the collector keeps walking over
    everything torch and transformers have made.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
