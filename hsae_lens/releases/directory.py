"""The table of releases: ours, the user's, and those registered from code, for SAELens too.

The package's own (``releases.yaml`` beside this file), then the user's (:func:`user_file`), are
read on import; :func:`register_release` adds one from code. What an entry is stands in
:mod:`hsae_lens.releases.entries`.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens.loading.pretrained_sae_loaders import (
    NAMED_PRETRAINED_SAE_CONFIG_GETTERS,
    NAMED_PRETRAINED_SAE_LOADERS,
)
from sae_lens.loading.pretrained_saes_directory import (
    PretrainedSAELookup,
    get_pretrained_saes_directory,
)

from hsae_lens._util.paths import expand_home
from hsae_lens.releases import hub_loader
from hsae_lens.releases.entries import Release, make_release, read_releases

TABLE = Path(__file__).with_name("releases.yaml")

LOADER = "hsae_lens"  # our name among SAELens' conversion functions

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
    release = make_release(name, model, saes, repo_id, folder)
    _register([release])
    return release


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
    _register(read_releases(TABLE))
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
        _register(read_releases(user_file()))


def _register(releases: Sequence[Release]) -> None:
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
    fill_saelens_directory()


def fill_saelens_directory() -> None:
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
        config_overrides=hub_loader.overrides_for_loader(
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
