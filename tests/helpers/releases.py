"""The release in the package, and an entry of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hsae_lens.releases.hub_loader import checksum

SHIPPED = ("smollm2-135m-res-htopk", "blocks.15.hook_resid_post")


def entry(folder: Path, **keys: Any) -> dict[str, Any]:
    """Of the SAE in ``folder``, with other keys if need be."""
    sha256 = checksum(folder / "layer-1" / "sae_weights.safetensors")
    return {"id": "blocks.1", "path": "layer-1", "sha256": sha256, **keys}
