"""Results as JSON: each part with the machine it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from hsae_lens._util.atomic_files import replacing_file
from hsae_lens.objective import kernels

RESULTS = Path(__file__).parent / "results"


def store(
    file: Path, part: str, device: str, rows: list[dict[str, Any]], dry: bool = False
) -> None:
    """Puts a part into the file, in the place of what it had there; written beside and renamed.

    A dry run's file says that it is one: its figures mean nothing, and stand beside no others.
    """
    everything = json.loads(file.read_text()) if file.exists() else {}
    if everything.get("dry run", False) != dry:
        everything = {"dry run": True} if dry else {}
    everything[part] = {
        "machine": machine(device),
        "kernel": _kernel(device, rows),
        "rows": rows,
    }
    with replacing_file(file) as fresh:
        fresh.write_text(json.dumps(everything, indent=1) + "\n")


def _kernel(device: str, rows: list[dict[str, Any]]) -> str:
    """What the first row's shape gets."""
    shape = rows[0].get("shape", {}) if rows else {}
    sizes = {name: shape[name] for name in ("d_in", "k") if name in shape}
    try:
        return kernels.explain(device, **sizes)
    except RuntimeError as refused:  # a kernel that was asked for and failed
        return str(refused)
