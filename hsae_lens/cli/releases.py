"""``hsae releases``, ``hsae calibrate``, ``hsae export`` and ``hsae publish``."""

from __future__ import annotations

import argparse
from typing import Any

from hsae_lens.cli.flags import add_command, add_flags, config_from_flags


def add_sharing(commands: Any) -> None:
    add_command(
        commands,
        "releases",
        _releases,
        help="list the SAEs that load by name, with their frontiers",
        description=(
            "Lists the releases in the package and in your own file (HSAE_RELEASES, else "
            "~/.config/hsae_lens/releases.yaml). Downloads nothing."
        ),
    )

    saved = "a folder with a saved SAE, or RELEASE/SAE_ID"
    calibrate = add_command(
        commands,
        "calibrate",
        _calibrate,
        help="give an SAE its thresholds for mean budgets",
        description=(
            "Finds the thresholds at which a saved SAE uses 1, 2, … K latents on average, keeps "
            "them with it, and shows what they spend on text that did not set them."
        ),
    )
    from hsae_lens.evaluation.calibrating import CalibrateConfig

    calibrate.add_argument("path", help=saved)
    add_flags(calibrate, CalibrateConfig)

    export = add_command(
        commands,
        "export",
        _export,
        help="write a stock SAELens SAE at one budget, which loads without this package",
    )
    export.add_argument("path", help=saved)
    budget = export.add_mutually_exclusive_group(required=True)
    budget.add_argument("--k", type=int, help="latents of each token: a TopK SAE")
    budget.add_argument("--mean-k", type=float, help="latents on average: a JumpReLU SAE")
    export.add_argument("--out", required=True, help="folder to write")
    export.add_argument(
        "--overwrite", action="store_true", help="replace another SAE that is in that folder"
    )

    publish = add_command(
        commands,
        "publish",
        _publish,
        help="upload an SAE to the Hugging Face hub, with a card and a release entry",
    )
    publish.add_argument("path", help=saved)
    publish.add_argument("repo", help="the repository, owner/name; made if it does not exist")
    publish.add_argument("--sae-id", help="its folder and id there (default: its hook's name)")
    publish.add_argument("--release", help="name in the entry to paste (default: the repository's)")
    publish.add_argument("--dry-run", action="store_true", help="show the card, upload nothing")
    publish.add_argument(
        "--overwrite", action="store_true", help="replace another SAE that is there under that id"
    )


def _releases(_: argparse.Namespace) -> None:
    from hsae_lens.releases.directory import read_user_file, user_file
    from hsae_lens.releases.listing import list_releases

    read_user_file()
    print(list_releases())
    print(f"\nYour own go into {user_file()}.")


def _calibrate(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.calibrating import CalibrateConfig, calibrate_saved

    table = calibrate_saved(parsed.path, config_from_flags(parsed, CalibrateConfig))
    print("On text that did not set the thresholds:")
    shown = table[["rule", "k", "l0", "explained_variance"]]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"Wrote the thresholds to {parsed.out or parsed.path}.")


def _export(parsed: argparse.Namespace) -> None:
    from hsae_lens.objective.budgets import MeanBudget
    from hsae_lens.releases.export import export_sae

    k = parsed.k if parsed.mean_k is None else MeanBudget(parsed.mean_k)
    out = export_sae(parsed.path, k, parsed.out, parsed.overwrite)
    kind = f"TopK SAE with k={k}"
    if isinstance(k, MeanBudget):
        kind = f"JumpReLU SAE that uses {k.k:g} latents on average"
    print(f"Wrote {out}, a {kind}: SAE.load_from_disk({str(out)!r}).")


def _publish(parsed: argparse.Namespace) -> None:
    from hsae_lens.releases.directory import user_file
    from hsae_lens.releases.publish import publish_sae

    card, entry = publish_sae(
        parsed.path,
        parsed.repo,
        parsed.sae_id,
        parsed.release,
        dry_run=parsed.dry_run,
        overwrite=parsed.overwrite,
    )
    done = f"{card}\nNot uploaded (dry run)." if parsed.dry_run else f"Uploaded to {parsed.repo}."
    print(f"{done} To load it by name, put this into {user_file()}:\n\n{entry}")
