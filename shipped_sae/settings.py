"""What the shipped SAEs are trained with, and what a run in a folder was begun with."""

from __future__ import annotations

import argparse
import json

from hsae_lens._util.atomic_files import replacing_file

CONTEXT = 128
FIRST_POSITION = 4  # the model parks outlier norms on those before
TOKENS_PER_STEP = 1024
D_SAE = 4608
K = 128
LR = 2e-3
DATASET = "sae-probes 0.4.2 (PyPI)"

NO_SETTINGS = ("again", "replace", "runs")  # flags that decide nothing of the weights


def hook_of(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def remember_settings(args: argparse.Namespace) -> None:
    """Refuses to go on with a run that was begun with other settings: its cards would lie."""
    given = {k: str(value) for k, value in sorted(vars(args).items()) if k not in NO_SETTINGS}
    settings, file = json.dumps(given), args.runs / "settings.json"
    if file.exists() and file.read_text() != settings:
        raise SystemExit(f"{args.runs} was begun with {file.read_text()}; give another --runs.")
    with replacing_file(file) as fresh:
        fresh.write_text(settings)
