"""Trained SAEs by name: the table of releases, opening one, and giving one to others."""

from hsae_lens.releases.directory import register_release, user_file
from hsae_lens.releases.entries import Release, read_releases
from hsae_lens.releases.export import export_sae
from hsae_lens.releases.opening import load_pretrained, open_sae
from hsae_lens.releases.publish import publish_sae
from hsae_lens.releases.sources import open_source

__all__ = [
    "Release",
    "export_sae",
    "load_pretrained",
    "open_sae",
    "open_source",
    "publish_sae",
    "read_releases",
    "register_release",
    "user_file",
]
